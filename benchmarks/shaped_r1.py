"""A synthetic DeepSeek-V3 checkpoint in R1's native form, of any size, streamed to disk.

    python -m benchmarks.shaped_r1 FOLDER --layers 4 --experts 64 --hidden 2048 --moe 1024

What R1's checkpoint has is here: native FP8 with its scales, the MTP layer, shards and an index,
config.json with R1's keys (`r1_tensors`, `r1_sizes`). Loads of experts are uneven, and no token
ever visits those of `ShapedR1.cold_experts`. The tokenizer is tiny-r1's, so the vocabulary is 512.
Memory stays below that of a few matrices: the files' headers are written from shapes alone, and
`r1_numbers` draws the tensors in bands of rows.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.r1_sizes import ShapedR1
from benchmarks.r1_tensors import ITEMSIZE, StoredTensor, stored_tensors
from benchmarks.shaped import TOKENIZER_FILES
from tightfit.calib.locate import EMBEDDED_NAME, locate_model

__all__ = ["ShapedR1", "write_shaped_r1"]

_LENGTH_BYTES = 8
"""Of the header's length, at the start of a safetensors file."""
_ALIGNMENT_BYTES = 8
"""Data begin at a multiple of it."""


def write_shaped_r1(model: ShapedR1, folder: Path) -> Path:
    """Write the checkpoint and return the folder; one band of a tensor in memory at a time."""
    folder.mkdir(parents=True)
    shards = _shards(stored_tensors(model), model.shard_bytes)
    placed: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        _write_shard(folder / file, shard)
        placed |= dict.fromkeys((tensor.name for tensor in shard), file)
    total_bytes = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text(json.dumps(model.config(), indent=2))
    for name in TOKENIZER_FILES:
        shutil.copy(locate_model(EMBEDDED_NAME).path / name, folder / name)
    return folder


def _shards(tensors: Iterator[StoredTensor], shard_bytes: int) -> list[list[StoredTensor]]:
    shards: list[list[StoredTensor]] = [[]]
    filled_bytes = 0
    for tensor in tensors:
        if shards[-1] and filled_bytes + tensor.nbytes > shard_bytes:
            shards.append([])
            filled_bytes = 0
        shards[-1].append(tensor)
        filled_bytes += tensor.nbytes
    return shards


def _write_shard(file: Path, shard: list[StoredTensor]) -> None:
    """As safetensors writes one: widest types first, so that every tensor is aligned."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    in_order = sorted(shard, key=lambda tensor: (-ITEMSIZE[tensor.dtype], tensor.name))
    end = 0
    for tensor in in_order:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for tensor in in_order:
            before = stream.tell()
            stream.writelines(tensor.draw())
            assert stream.tell() - before == tensor.nbytes, tensor.name


def main() -> None:
    """Write the checkpoint that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--experts", type=int, required=True)
    parser.add_argument("--hidden", type=int, required=True)
    parser.add_argument("--moe", type=int, required=True, help="width of an expert")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = ShapedR1(
        n_layers=options.layers,
        n_experts=options.experts,
        hidden=options.hidden,
        moe_intermediate=options.moe,
        seed=options.seed,
    )
    write_shaped_r1(model, options.folder)


if __name__ == "__main__":
    main()
