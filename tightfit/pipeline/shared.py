"""What every task of one quantization needs: picklable, opened anew in each worker process."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tightfit.calib.calibration import CalibrationSet
from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.decoder import Decoder
from tightfit.calib.imatrix import Imatrix
from tightfit.calib.locate import ModelSource
from tightfit.calib.transfer import to_device
from tightfit.errors import QuantizationError
from tightfit.pipeline.job import Units
from tightfit.pipeline.quantize import Method
from tightfit.pipeline.states import StateFiles
from tightfit.pipeline.weights import FLOAT_DTYPES
from tightfit.quant.grid import Grid, all_finite
from tightfit.quant.registry import get_grid


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """The inputs of a quantization. Checkpoint and folder must be seen by every worker."""

    source: ModelSource
    storage: Mapping[str, str]
    """Grid or float type of every tensor by logical name."""
    method: Method
    calibration: CalibrationSet | None
    """None: weights are rounded without, or under `imatrix`."""
    folder: Path
    """Of the units and the hidden states."""
    device: str
    threads: int
    """Of torch, in every worker: bits must not depend on who does the work."""
    experts_at_once: int = 1
    """Routed experts that are in memory and solved together; never decides the bytes."""
    imatrix: Imatrix | None = None
    """Importance of columns that somebody else measured."""

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what was opened stays in the process that opened it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The model folder."""
        return open_checkpoint(self.source)

    @cached_property
    def decoder(self) -> Decoder:
        """Runs its blocks."""
        device = torch.device(self.device)
        return Decoder(self.checkpoint.path, self.checkpoint.architecture, device)

    @cached_property
    def units(self) -> Units:
        """Finished work."""
        return Units(self.folder)

    @cached_property
    def states(self) -> StateFiles:
        """Hidden states between blocks."""
        return StateFiles(self.folder, self.checkpoint.dimensions.hidden_size)

    @cached_property
    def grids(self) -> Mapping[str, Grid]:
        """Grid of every quantized tensor by logical name; a tied head is under the embedding."""
        return {
            name: get_grid(stored_as)
            for name, stored_as in self.storage.items()
            if stored_as not in FLOAT_DTYPES
        }

    @cached_property
    def plain_dtype(self) -> torch.dtype:
        """What norms and biases are stored as: all alike, and the final norm is one of them."""
        return FLOAT_DTYPES[self.storage[self.checkpoint.architecture.final_norm]]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each calibration sequence."""
        assert self.calibration is not None
        return tuple(len(sample.ids) for sample in self.calibration.samples)

    def weight(self, name: str) -> Tensor:
        """A tensor of the checkpoint, named in the error when a number in it is damaged."""
        return _finite(name, self.checkpoint.load(name))

    def rows(self, name: str, rows: slice) -> Tensor:
        """The same of some rows of a matrix that is stored as it is named."""
        return _finite(name, self.checkpoint.load_rows(name, rows))

    def float_weight(self, name: str) -> Tensor:
        """The same in float32, on the device."""
        return to_device(self.weight(name), self.decoder.device).float()

    def block_grids(self, layer: int) -> dict[str, Grid]:
        """Grids of a block's tensors by path inside it."""
        prefix = self.checkpoint.architecture.tensor(layer, "")
        return {
            name.removeprefix(prefix): grid
            for name, grid in self.grids.items()
            if name.startswith(prefix)
        }


def _finite(name: str, weight: Tensor) -> Tensor:
    if not all_finite(weight):
        raise QuantizationError(
            f"{name} holds NaN or infinity",
            allowed="every weight of the checkpoint must be a finite number",
            hint="the checkpoint is damaged: download or convert it again",
        )
    return weight
