"""Programs that the card shows; capital words stand for what belongs to the repository."""

from typing import Final

TRANSFORMERS: Final = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    "tokenizer = AutoTokenizer.from_pretrained(REPOSUBFOLDER)",
    'model = AutoModelForCausalLM.from_pretrained(REPOSUBFOLDER, device_map="auto")',
    'messages = [{"role": "user", "content": "What is 19 + 99?"}]',
    "inputs = tokenizer.apply_chat_template(",
    '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
    ").to(model.device)",
    "output = model.generate(**inputs, max_new_tokens=512)",
    "print(tokenizer.decode(output[0]))",
)
GENAI: Final = (
    "import json",
    "",
    "import onnxruntime_genai as og",
    "",
    "model = og.Model(FOLDER)",
    "tokenizer = og.Tokenizer(model)",
    'messages = json.dumps([{"role": "user", "content": "What is 19 + 99?"}])',
    "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)",
    "generator = og.Generator(model, og.GeneratorParams(model))",
    "generator.append_tokens(tokenizer.encode(prompt))",
    "stream = tokenizer.create_stream()",
    "while not generator.is_done():",
    "    generator.generate_next_token()",
    '    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)',
)
ONNXRUNTIME: Final = (
    "import onnxruntime",
    "",
    "session = onnxruntime.InferenceSession(PATH)",
    "print([value.name for value in session.get_inputs()])",
)
TRANSFORMERS_JS: Final = (
    'import { pipeline } from "@huggingface/transformers";',
    "",
    'const generate = await pipeline("text-generation", REPO, { OPTIONS });',
    'const messages = [{ role: "user", content: "What is 19 + 99?" }];',
    "const output = await generate(messages, { max_new_tokens: 512 });",
    "console.log(output[0].generated_text.at(-1).content);",
)
