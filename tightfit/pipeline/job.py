"""The job directory: finished units of work that survive an interruption.

A unit (a decoder block, the embedding, the head) is renamed into place when it is whole. The
directory belongs to one set of inputs, named by a key; the same command finds its own work again
and another command is refused.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tightfit.errors import ArtifactError
from tightfit.files import whole_file, write_text_whole

FOLDER = ".tightfit-job"
_KEY_FILE = "job.json"
_META_KEY = "tightfit"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedTensor:
    """A quantized matrix as its format stores it."""

    grid: str
    shape: tuple[int, int]
    data: Tensor
    """uint8 (O, bytes per row)."""


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


class Job:
    """Finished units of one export."""

    def __init__(self, output: Path, inputs: Mapping[str, Any], *, overwrite: bool) -> None:
        """Open or create the job directory in `output` for these inputs."""
        self.path = output / FOLDER
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        key_file = self.path / _KEY_FILE
        if key_file.exists() and json.loads(key_file.read_text())["key"] != key:
            # One that stopped before its first result (a wrong --device, --calib) holds no work.
            has_work = any(file != key_file for file in self.path.iterdir())
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
        if not key_file.exists():
            text = json.dumps({"key": key, "inputs": inputs}, indent=1, sort_keys=True)
            write_text_whole(key_file, text)

    def has(self, unit: str) -> bool:
        """Whether the unit is finished."""
        return self._file(unit).exists()

    def save(self, unit: str, result: UnitResult) -> None:
        """Store a finished unit."""
        meta = {
            "quantized": {
                name: {"grid": tensor.grid, "shape": tensor.shape}
                for name, tensor in result.quantized.items()
            },
            "reports": [asdict(report) for report in result.reports],
        }
        tensors = {name: tensor.data for name, tensor in result.quantized.items()}
        tensors |= dict(result.plain)
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        with whole_file(self._file(unit)) as part:
            save_file(contiguous, part, metadata={_META_KEY: json.dumps(meta)})

    def load(self, unit: str) -> UnitResult:
        """A finished unit, memory-mapped."""
        with safe_open(self._file(unit), framework="pt") as file:
            meta = json.loads(file.metadata()[_META_KEY])
            quantized = {
                name: PackedTensor(
                    grid=entry["grid"], shape=tuple(entry["shape"]), data=file.get_tensor(name)
                )
                for name, entry in meta["quantized"].items()
            }
            plain = {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - safe_open is no mapping
                if name not in quantized
            }
        reports = tuple(LinearReport(**entry) for entry in meta["reports"])
        return UnitResult(quantized=quantized, plain=plain, reports=reports)

    def hidden_file(self, layer: int) -> Path:
        """Where the hidden states entering a block lie."""
        return self.path / f"hidden-{layer:05d}.f32"

    def discard(self) -> None:
        """Remove the directory once the artifact is whole."""
        shutil.rmtree(self.path)

    def _file(self, unit: str) -> Path:
        return self.path / f"{unit}.safetensors"


def block_unit(layer: int) -> str:
    """Name of a decoder block's unit."""
    return f"block-{layer:05d}"
