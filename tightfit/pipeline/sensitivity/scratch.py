"""Finished parts of a measurement in its folder: each is whole or absent.

Hidden states and their gradients are memory-mapped files that are renamed once every sequence is
in them; losses are JSON; quantized matrices are units like those of the walk.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from tightfit.files import write_text_whole
from tightfit.pipeline.job import Units
from tightfit.pipeline.states import StateFiles

Losses = Mapping[str, Mapping[str, float]]
"""Predicted KL in nats by tensor and grid."""


class Scratch(StateFiles):
    """The folder of one measurement."""

    def __init__(self, folder: Path, width: int) -> None:
        """Create the folder where it is not there yet; `width` is that of the hidden states."""
        super().__init__(folder, width)
        self.units = Units(folder)

    def has_losses(self, unit: str) -> bool:
        """Whether the unit is finished."""
        return self._losses_file(unit).exists()

    def losses(self, unit: str) -> Losses:
        """Losses of a finished unit."""
        fields = json.loads(self._losses_file(unit).read_text(encoding="utf-8"))
        return {tensor: {g: float(nats) for g, nats in of.items()} for tensor, of in fields.items()}

    def save_losses(self, unit: str, losses: Losses) -> None:
        """Finish a unit."""
        write_text_whole(self._losses_file(unit), json.dumps(losses, indent=1))

    def clear(self) -> None:
        """Remove all finished parts once the result is written."""
        for pattern in ("*.f32", "losses-*.json", "*.safetensors"):
            for path in self._folder.glob(pattern):
                path.unlink()

    def _losses_file(self, unit: str) -> Path:
        return self._folder / f"losses-{unit}.json"
