"""The 135M test model is the one in the package, as transformers reads that GGUF."""

from pathlib import Path

import pytest
import torch
from support.smollm2 import smollm2_checkpoint, smollm2_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.tokenizer import load_tokenizer
from tightfit.calib.validate import validate

TEXT = "12 + 345 = x\n\n hello don't  Ünï — x²<|im_start|>user"


@pytest.mark.slow
def test_the_135m_model_is_bit_exact_and_speaks(tmp_path: Path) -> None:
    folder = smollm2_checkpoint(tmp_path / "smollm2", dtype=torch.float32)
    checkpoint = open_checkpoint(folder)
    validate(checkpoint, checkpoint.architecture)
    assert checkpoint.tied_head
    packed = smollm2_gguf()
    theirs = AutoModelForCausalLM.from_pretrained(
        packed.parent, gguf_file=packed.name, dtype=torch.float32
    ).state_dict()
    for name in theirs:
        assert checkpoint.load(name).equal(theirs[name])

    tokenizer = load_tokenizer(folder)
    their_tokenizer = AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name)
    ids = tokenizer.encode(TEXT)
    assert ids == their_tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
