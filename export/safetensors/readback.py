"""Read a quantized checkpoint back, by the reader that also takes such checkpoints as input.

`tightfit.calib.packed` knows the formats from their specifications and shares no line with the
writers here; the tests hold both against gptqmodel, compressed-tensors and ModelOpt.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.validate import ACTIVATION_SCALES, validate

_CHUNK_ELEMENTS = 1 << 22
"""Values that are compared at a time: 16 MB of float32."""


def read_weights(folder: Path) -> Iterator[tuple[str, Iterator[NDArray[np.float32]]]]:
    """Name and float32 values, some rows at a time, of every tensor of the model.

    Raises `CheckpointError` for a folder that is damaged or not what its config.json says.
    """
    checkpoint = open_checkpoint(folder)
    validate(checkpoint, checkpoint.architecture)
    for name in checkpoint.names():
        if name.endswith(ACTIVATION_SCALES):
            continue
        yield name, _chunks(checkpoint.load(name).float().numpy())


def _chunks(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    rows = max(1, _CHUNK_ELEMENTS // max(1, values[0].size))
    for start in range(0, len(values), rows):
        yield values[start : start + rows]
