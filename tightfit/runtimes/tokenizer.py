"""The tokenizer that lies beside a model, for runtimes that have none of their own."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from tightfit.calib.config import CONFIG_NAME
from tightfit.calib.json_file import read_json
from tightfit.errors import ArtifactError

TOKENIZER_NAME = "tokenizer.json"


class FolderTokenizer:
    """tokenizer.json of a folder, and the tokens that end a generation."""

    def __init__(self, folder: Path) -> None:
        """Read the files; raises `ArtifactError`."""
        path = folder / TOKENIZER_NAME
        if not path.is_file():
            raise ArtifactError(
                f"{folder} holds no {TOKENIZER_NAME}",
                allowed="a whole checkpoint, or the folder that `tightfit export` wrote, with "
                "config.json and the tokenizer beside the model or one folder above it",
                hint="give such a folder, or copy the tokenizer of the checkpoint into it",
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # `tokenizers` raises nothing more precise
            raise ArtifactError(
                f"{path} is damaged: {error}", hint="export or download again, or restore the file"
            ) from error
        self.end_ids = _end_ids(folder)

    def encode(self, text: str) -> list[int]:
        """Token ids, special tokens written in the text read as such, none added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text, special tokens written out."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text


def find_tokenizer_folder(model: Path) -> Path:
    """The nearest folder above a model file that holds a tokenizer; its own where none does."""
    near = (model.parent, model.parent.parent)
    return next((folder for folder in near if (folder / TOKENIZER_NAME).is_file()), model.parent)


def _end_ids(folder: Path) -> frozenset[int]:
    """End-of-generation tokens, as transformers reads them."""
    for name in ("generation_config.json", CONFIG_NAME):
        end = read_json(folder / name).get("eos_token_id")
        if end is not None:
            return frozenset(end if isinstance(end, list) else [end])
    return frozenset()
