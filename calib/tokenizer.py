"""The checkpoint's own tokenizer and chat template.

The fast tokenizer file is loaded as it stands: AutoTokenizer picks a class from `model_type` and
may rebuild a custom vocabulary as something else. Both come from a stranger: the files are held
against a size before they are read, and what the packages trip over is told as damage.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from tightfit.calib.json_file import read_json
from tightfit.errors import CheckpointError
from tightfit.records import MAX_JSON_BYTES, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

THINK_OPENING = "<think>\n"
"""R1's answers are forced to begin with this (DeepSeek's usage recommendations)."""
_TEMPLATE_NAME = "chat_template.jinja"
_MAX_TEMPLATE_BYTES = 1_000_000
"""Templates with tools in several languages have 20 KB."""


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a checkpoint folder, with its chat template; raises `CheckpointError`."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} holds no tokenizer.json",
            allowed="a checkpoint must carry its fast tokenizer (tokenizer.json)",
            hint="download the whole repository, not only its weights",
        )
    _check_size(folder / "tokenizer.json", MAX_JSON_BYTES)
    _check_size(folder / _TEMPLATE_NAME, _MAX_TEMPLATE_BYTES)
    read_json(folder / "tokenizer_config.json")
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.encode("")  # a setting of the wrong type shows only here
    # The tokenizers package raises a plain Exception for whatever it does not take.
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be loaded: {shown(str(error))}",
            hint="download tokenizer.json and tokenizer_config.json again",
        ) from error
    if tokenizer.chat_template is None:
        raise CheckpointError(
            f"the tokenizer in {folder} has no chat template",
            allowed=f"a chat model with `chat_template` in tokenizer_config.json or "
            f"{_TEMPLATE_NAME}",
            hint="copy the template of the original repository into the folder",
        )
    return tokenizer


def prompt_ids(tokenizer: "PreTrainedTokenizerFast", question: str) -> list[int]:
    """Token ids of a user turn up to where the reasoning begins, `<think>` included."""
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
    # The template is a program, run in jinja's sandbox: it can fail in any way.
    except Exception as error:
        raise CheckpointError(
            f"the chat template of {tokenizer.name_or_path} fails: {shown(str(error))}",
            hint="copy the template of the original repository into the folder",
        ) from error
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


def _check_size(path: Path, most_bytes: int) -> None:
    if path.is_file() and path.stat().st_size > most_bytes:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes",
            allowed=f"at most {most_bytes}",
            hint="do not use this checkpoint unless you trust its author",
        )
