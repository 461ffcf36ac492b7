"""Names of GGUF files, as llama.cpp and the Hub read them.

`Model-1.5B-Q4_K_M.gguf`; in several files `Model-1.5B-Q4_K_M-00001-of-00003.gguf` (llama.cpp's
`llama_split_path`), of which a reader is given the first.
"""

import re
from pathlib import Path

from gguf.gguf_writer import SHARD_NAME_FORMAT

_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def gguf_name(model_name: str, label: str) -> str:
    """File name of a model at a file type; the Hub takes the quantization from the last part."""
    plain = re.sub(r"[^\w.]+", "-", model_name).strip("-")
    return f"{plain}-{label}.gguf"


def shard_paths(path: Path, count: int) -> tuple[Path, ...]:
    """Paths of a model in `count` files; one file keeps the plain name."""
    if count == 1:
        return (path,)
    return tuple(
        path.with_name(SHARD_NAME_FORMAT.format(path.stem, number, count))
        for number in range(1, count + 1)
    )


def sibling_shards(path: Path) -> tuple[Path, ...]:
    """All files of the model that `path`, any of them, belongs to."""
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None:
        return (path,)
    return shard_paths(path.with_name(match["stem"] + ".gguf"), int(match["count"]))


def existing_shards(path: Path) -> tuple[Path, ...]:
    """Files that already stand where a model named `path` goes, in one file or in several."""
    pattern = re.compile(re.escape(path.stem) + r"-\d{5}-of-\d{5}\.gguf")
    folder = path.parent
    found = sorted(file for file in folder.iterdir() if pattern.fullmatch(file.name))
    return (path, *found) if path.exists() else tuple(found)
