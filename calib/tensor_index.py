"""Which file of a model folder holds which tensor.

A sharded checkpoint has model.safetensors.index.json, whose `weight_map` gives the file of every
tensor; a small one is model.safetensors alone. The index is a stranger's: it names plain files of
its own folder, and a tensor has one place.
"""

from pathlib import Path

from tightfit.calib.inside import leads_outside
from tightfit.calib.safetensors_header import StoredTensor, is_tensor_name, read_header
from tightfit.errors import CheckpointError
from tightfit.records import load_json, shown

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_SUFFIX = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SHOWN = 3  # names in a message before it says how many more there are


def index_folder(folder: Path) -> dict[str, StoredTensor]:
    """All tensors that a folder stores, by name; raises `CheckpointError`."""
    index = folder / INDEX_NAME
    if index.is_file():
        return _read_sharded(folder, _read_weight_map(index))
    single = folder / SINGLE_NAME
    if single.is_file():
        return _read_file(folder, SINGLE_NAME)
    raise _no_weights(folder)


def shorten(names: list[str]) -> str:
    """A few names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = load_json(index)["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{index}: no `weight_map` can be read from it: {error}",
            hint="download the file again",
        ) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: `weight_map` is empty or not an object", hint="download the file again"
        )
    for name, file in weight_map.items():
        # Anything but a plain name could read files outside the model's folder.
        if not is_tensor_name(name) or not _is_shard(file):
            raise CheckpointError(
                f"{index}: {shown(name)} is said to be in {shown(file)}",
                allowed=f"a shard is a plain file name in the same folder and ends in {_SUFFIX}",
                hint="do not use this checkpoint unless you trust its author",
            )
    return weight_map


def _is_shard(file: object) -> bool:
    return (
        isinstance(file, str)
        and file.endswith(_SUFFIX)
        and file.isprintable()
        and not any(mark in file for mark in "/\\:")
    )


def _read_file(folder: Path, name: str) -> dict[str, StoredTensor]:
    if leads_outside(folder, name):
        raise CheckpointError(
            f"{folder / name} is a link to {(folder / name).resolve()}, which is not in the folder",
            allowed="the files themselves, or links within the folder or the Hub's cache",
            hint="copy the file into the folder if you trust it",
        )
    return read_header(folder / name)


def _read_sharded(folder: Path, weight_map: dict[str, str]) -> dict[str, StoredTensor]:
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(files)} shards are missing: {shorten(missing)}",
            hint="the download was not finished: download the model again (it resumes)",
        )
    stored: dict[str, StoredTensor] = {}
    for file in files:
        held = _read_file(folder, file)
        # Where the index gives a place, that one counts; what it leaves out has one place too.
        placed = {name: of for name, of in held.items() if weight_map.get(name, file) == file}
        twice = sorted(placed.keys() & stored.keys())
        if twice:
            raise CheckpointError(
                f"{folder / file}: {twice[0]!r} is in {stored[twice[0]].file.name} too, and the "
                "index says of neither that it is the one",
                hint="the shards are of different versions: download all of them again",
            )
        stored |= placed
    absent = sorted(weight_map.keys() - stored.keys())
    if absent:
        raise CheckpointError(
            f"{folder / weight_map[absent[0]]}: the index says that it holds {absent[0]!r}, and it "
            f"does not ({len(absent)} such tensors)",
            hint="the index and the shards are of different versions: download all of them again",
        )
    return stored


def _no_weights(folder: Path) -> CheckpointError:
    held = sorted(entry.name for entry in folder.iterdir())
    pickles = [name for name in held if name.endswith(PICKLES)]
    others = [name for name in held if name.endswith(_SUFFIX)]
    if pickles:
        return CheckpointError(
            f"{folder}: the weights are pickles: {shorten(pickles)}",
            allowed=f"{SINGLE_NAME}, or shards with {INDEX_NAME}: a pickle can run any code",
            hint="convert them: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
        )
    if others:
        return CheckpointError(
            f"{folder}: holds {shorten(others)} but no {INDEX_NAME}",
            allowed=f"{SINGLE_NAME}, or shards with {INDEX_NAME}",
            hint="download the index too",
        )
    return CheckpointError(
        f"{folder}: holds no weights",
        allowed=f"{SINGLE_NAME}, or shards with {INDEX_NAME}",
        hint="the download was not finished, or this is another kind of folder",
    )
