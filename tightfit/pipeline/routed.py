"""What passes from a mixture block's trunk to its experts, on disk between tasks.

The trunk is all of a block but its routed experts: attention, norms, router, shared experts. Its
pass over the calibration tokens leaves three files: the tokens as the experts read them, what the
block gives without its routed experts (both `StateFiles`), and here which experts each token
visits.

Shape legend: T tokens, K experts that a token visits, I input columns.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tightfit.files import whole_file
from tightfit.quant.algorithms.hessian import InputStatistics


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Routed:
    """Where each token goes."""

    experts_TK: Tensor
    """int64 (T, K): numbers of the experts."""
    weights_TK: Tensor
    """float32 (T, K): weight of each one's output."""

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """Rows of the tokens that visit an expert, ascending, and their weights."""
        rows_T, places_T = torch.where(self.experts_TK == expert)
        return rows_T, self.weights_TK[rows_T, places_T]

    def save(self, path: Path) -> None:
        """Write the file; it is whole or absent."""
        with whole_file(path) as part:
            save_file({"experts": self.experts_TK, "weights": self.weights_TK}, part)

    @classmethod
    def load(cls, path: Path) -> "Routed":
        """Read it."""
        tensors = load_file(path)
        return cls(experts_TK=tensors["experts"], weights_TK=tensors["weights"])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExpertsPrior:
    """What the experts' tasks take from the trunk's quantization."""

    statistics: InputStatistics
    """Of all tokens of the block, as the experts read them: what cold experts fall back on."""
    scale_I: Tensor | None
    """AWQ scale that gate and up are multiplied by; the tokens are divided by it."""

    def save(self, path: Path) -> None:
        """Write the file; it is whole or absent."""
        seen = self.statistics
        tensors = {
            "hessian": seen.hessian_II,
            "abs_max": seen.abs_max_I,
            "abs_mean": seen.abs_mean_I,
            "n_tokens": torch.tensor(seen.n_tokens),
        }
        if self.scale_I is not None:
            tensors["scale"] = self.scale_I
        with whole_file(path) as part:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "ExpertsPrior":
        """Read it onto a device."""
        tensors = load_file(path, device=str(device))
        return cls(
            statistics=InputStatistics(
                hessian_II=tensors["hessian"],
                abs_max_I=tensors["abs_max"],
                abs_mean_I=tensors["abs_mean"],
                n_tokens=int(tensors["n_tokens"]),
            ),
            scale_I=tensors.get("scale"),
        )
