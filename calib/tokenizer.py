"""The checkpoint's own tokenizer and chat template.

The fast tokenizer file is loaded as it stands: AutoTokenizer picks a class from `model_type` and
may rebuild a custom vocabulary as something else.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from tightfit.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

THINK_OPENING = "<think>\n"
"""R1's answers are forced to begin with this (DeepSeek's usage recommendations)."""


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a checkpoint folder, with its chat template."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} holds no tokenizer.json",
            allowed="a checkpoint must carry its fast tokenizer (tokenizer.json)",
            hint="download the whole repository, not only its weights",
        )
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise CheckpointError(
            f"the tokenizer in {folder} has no chat template",
            allowed="a chat model with `chat_template` in tokenizer_config.json or "
            "chat_template.jinja",
            hint="copy the template of the original repository into the folder",
        )
    return tokenizer


def prompt_ids(tokenizer: "PreTrainedTokenizerFast", question: str) -> list[int]:
    """Token ids of a user turn up to where the reasoning begins, `<think>` included."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    assert isinstance(text, str)
    if not text.endswith(THINK_OPENING):
        text += THINK_OPENING
    return list(tokenizer.encode(text, add_special_tokens=False))


def completion_ids(tokenizer: "PreTrainedTokenizerFast", completion: str) -> list[int]:
    """Token ids of what follows the prompt (reasoning, `</think>`, answer), end token included."""
    ids = list(tokenizer.encode(completion, add_special_tokens=False))
    if tokenizer.eos_token_id is not None:
        ids.append(int(tokenizer.eos_token_id))
    return ids
