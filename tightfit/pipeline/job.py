"""The job directory: finished units of work that survive an interruption.

A unit (a decoder block, a group of a block's experts, the embedding, the head) is renamed into
place when it is whole, and holds a hash of its own content: what a failing disk or a power cut
damaged is made again. The directory belongs to one set of inputs, named by a key; the same command
finds its own work again and another command is refused. Each quantization of the job has a folder
of units in it.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tightfit.errors import ArtifactError
from tightfit.files import whole_file, write_text_whole
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor

FOLDER = ".tightfit-job"
UNFINISHED = "unfinished"
"""Folder in it of a file that is rounded while it is written."""
_KEY_FILE = "job.json"
_LOCK_FILE = "lock"
_META_KEY = "tightfit"
_HASH_KEY = "sha256"
_GROUP_INDEX = ".group_index"
"""Suffix of the tensor that holds an act-order."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedTensor:
    """A quantized matrix as its grid packs it."""

    grid: str
    shape: tuple[int, int]
    data: Tensor
    """uint8 (O, bytes per row)."""
    group_index_I: Tensor | None = None
    """int32 (I,): group of each column when act-order regrouped them."""
    input_scale: float | None = None
    """Static FP8 scale of what the linear reads."""

    @classmethod
    def pack(cls, tensor: QuantizedTensor, input_scale: float | None = None) -> "PackedTensor":
        """The matrix packed by its grid."""
        in_place = replace(tensor, group_index_I=None)
        return cls(
            grid=tensor.grid,
            shape=tensor.shape,
            data=get_grid(tensor.grid).pack(in_place),
            group_index_I=tensor.group_index_I,
            input_scale=input_scale,
        )

    def rows(self, rows: slice) -> "PackedTensor":
        """Some of its rows, which share no parameters with others."""
        data = self.data[rows]
        return replace(self, shape=(len(data), self.shape[1]), data=data)

    def unpack(self) -> QuantizedTensor:
        """The inverse of `pack`."""
        unpacked = get_grid(self.grid).unpack(self.data, self.shape)
        return replace(unpacked, group_index_I=self.group_index_I)


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearReport:
    """How well one linear was quantized."""

    name: str
    relative_error: float
    """|| (W' - W) X ||² / || W X ||² on the calibration tokens."""
    damp: float | None
    """Damping that the factorization needed, as a fraction of the mean diagonal; None: no GPTQ."""
    dead_columns: int
    """Input channels that no calibration token made active."""
    tokens: int | None = None
    """Of a routed expert: calibration tokens that visited it."""
    own_share: float | None = None
    """Of a routed expert: share of its own tokens in its Hessian; the rest is the block's."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UnitResult:
    """What a finished unit holds, by checkpoint name."""

    quantized: Mapping[str, PackedTensor]
    plain: Mapping[str, Tensor]
    """float32: norms and biases, as the algorithms left them."""
    reports: tuple[LinearReport, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors of the unit."""
        return (*self.quantized, *self.plain)


class Units:
    """Finished units of one quantization."""

    def __init__(self, folder: Path) -> None:
        """Create the folder where it is not there yet."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._checked: set[str] = set()

    def has(self, unit: str) -> bool:
        """Whether the unit is finished and undamaged; its first look reads all of it."""
        if unit in self._checked:
            return True
        if not self._file(unit).exists():
            return False
        try:
            tensors, meta = self._read(unit)
            whole = bool(meta.pop(_HASH_KEY) == _content_hash(tensors, meta))
        except (SafetensorError, KeyError, ValueError, TypeError):
            whole = False
        if whole:
            self._checked.add(unit)
        return whole

    def save(self, unit: str, result: UnitResult) -> None:
        """Store a finished unit."""
        meta = {
            "quantized": {
                name: {
                    "grid": tensor.grid,
                    "shape": tensor.shape,
                    "input_scale": tensor.input_scale,
                }
                for name, tensor in result.quantized.items()
            },
            "reports": [asdict(report) for report in result.reports],
        }
        tensors = {name: tensor.data for name, tensor in result.quantized.items()}
        tensors |= {
            # Linears on one input share the tensor, and safetensors wants each its own.
            name + _GROUP_INDEX: tensor.group_index_I.clone()
            for name, tensor in result.quantized.items()
            if tensor.group_index_I is not None
        }
        tensors |= dict(result.plain)
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        # Through JSON, so that the hash is of what a reader sees: lists, no tuples.
        meta = json.loads(json.dumps(meta))
        meta[_HASH_KEY] = _content_hash(contiguous, meta)
        with whole_file(self._file(unit)) as part:
            save_file(contiguous, part, metadata={_META_KEY: json.dumps(meta)})
        self._checked.add(unit)

    def load(self, unit: str) -> UnitResult:
        """A finished unit, memory-mapped."""
        tensors, meta = self._read(unit)
        quantized = {
            name: PackedTensor(
                grid=entry["grid"],
                shape=tuple(entry["shape"]),
                data=tensors.pop(name),
                group_index_I=tensors.pop(name + _GROUP_INDEX, None),
                input_scale=entry["input_scale"],
            )
            for name, entry in meta["quantized"].items()
        }
        reports = tuple(LinearReport(**entry) for entry in meta["reports"])
        return UnitResult(quantized=quantized, plain=tensors, reports=reports)

    def _read(self, unit: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with safe_open(self._file(unit), framework="pt") as file:
            meta = json.loads(file.metadata()[_META_KEY])
            tensors = {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - safe_open is no mapping
            }
        return tensors, meta

    def _file(self, unit: str) -> Path:
        return self._folder / f"{unit}.safetensors"


class Job:
    """The directory of one export."""

    def __init__(self, output: Path, inputs: Mapping[str, Any], *, overwrite: bool) -> None:
        """Open or create the job directory in `output` for these inputs."""
        self.path = output / FOLDER
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        key_file = self.path / _KEY_FILE
        if key_file.exists() and json.loads(key_file.read_text())["key"] != key:
            # One that stopped before its first result (a wrong --device, --calib) holds no work.
            small = (key_file, self.path / _LOCK_FILE)
            has_work = any(f.is_file() and f not in small for f in self.path.rglob("*"))
            if has_work and not overwrite:
                raise ArtifactError(
                    f"{output} holds an unfinished export with other inputs or options",
                    allowed="an interrupted export resumes with the same command, packages and "
                    "number of threads",
                    hint="repeat the earlier command, choose another folder with -o, or pass "
                    "--overwrite to discard it",
                )
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path / _LOCK_FILE)
        if not key_file.exists():
            text = json.dumps({"key": key, "inputs": inputs}, indent=1, sort_keys=True)
            write_text_whole(key_file, text)

    def folder(self, quantization: str) -> Path:
        """Where the units of one of the job's quantizations lie."""
        return self.path / quantization

    def discard(self) -> None:
        """Remove the directory once the artifacts are whole."""
        shutil.rmtree(self.path)
        self._lock.close()


def _lock(path: Path) -> IO[str]:
    """A file that only one process holds; the system lets go of it however the process ends."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ArtifactError(
            f"another export is at work in {path.parent.parent}",
            allowed="one at a time in a folder",
            hint="wait for it, or choose another folder with -o",
        ) from error
    return file


def block_unit(layer: int) -> str:
    """Name of a decoder block's unit; of a mixture without its routed experts."""
    return f"block-{layer:05d}"


def experts_unit(layer: int, first: int) -> str:
    """Name of the unit of a group of routed experts, by the first one's number."""
    return f"{block_unit(layer)}-experts-{first:05d}"


def _content_hash(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
