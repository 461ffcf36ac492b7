"""Statistics of a linear's input: the Hessian of its output error, and per-channel magnitudes.

For y = W x the mean squared output error of a replacement W' is

    E |(W' - W) x|**2 = tr((W' - W) H (W' - W)^T),    H = E[x x^T]

so H (half the Hessian of that error; GPTQ's factor 2 cancels everywhere) is all that GPTQ and AWQ
need of the activations. Its diagonal is what llama.cpp calls the importance matrix.

Sums are float32: a float32 GEMM adds its tokens pairwise in blocks, and the sums over some hundred
batches lose about 1e-6 relative, far below the damping. Only the blocks on and below the diagonal
are computed and then mirrored, which halves the cost of wide inputs.

Shape legend: T tokens, I input columns, O output rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.errors import CalibrationError
from tightfit.quant.grid import all_finite

_TRIANGLE_BLOCK = 256
"""Rows of H that one GEMM computes. Of the whole square's time it takes 80 % at width 512,
63 % at 1536, 54 % at 3584 and more; with 512 rows 98, 71 and 60 % (one thread, 2048 tokens)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InputStatistics:
    """What calibration knows about one input."""

    hessian_II: Tensor
    """float32 (I, I), symmetric: mean of x x^T over tokens."""
    abs_max_I: Tensor
    """float32 (I,): largest |x|."""
    abs_mean_I: Tensor
    """float32 (I,): mean |x|."""
    n_tokens: int
    design_effect: float = 1.0
    """n sum(w**2) / sum(w)**2 of the tokens' weights (Kish 1965): 1 when all weigh alike."""

    @property
    def effective_tokens(self) -> float:
        """Tokens of equal weight whose mean would vary as much: sum(w)**2 / sum(w**2)."""
        return self.n_tokens / self.design_effect

    @property
    def importance_I(self) -> Tensor:
        """float32 (I,): mean x**2, the importance matrix."""
        return self.hessian_II.diagonal()

    def scaled(self, scale_I: Tensor) -> "InputStatistics":
        """The statistics after the input was divided by `scale_I` (an AWQ scale was folded)."""
        return InputStatistics(
            hessian_II=self.hessian_II / torch.outer(scale_I, scale_I),
            abs_max_I=self.abs_max_I / scale_I,
            abs_mean_I=self.abs_mean_I / scale_I,
            n_tokens=self.n_tokens,
            design_effect=self.design_effect,
        )


class HessianAccumulator:
    """Sums statistics over batches of tokens; leave padding out, or weigh it 0."""

    def __init__(self, n_columns: int, device: torch.device | None = None) -> None:
        self._sum_II = torch.zeros(n_columns, n_columns, device=device)
        self._abs_sum_I = torch.zeros(n_columns, device=device)
        self._abs_max_I = torch.zeros(n_columns, device=device)
        self._n_tokens = 0
        self._total_weight = 0.0
        self._total_square = 0.0

    @property
    def n_tokens(self) -> int:
        """Tokens of positive weight so far."""
        return self._n_tokens

    def add(self, x_TI: Tensor, weight_T: Tensor | None = None) -> None:
        """Add the activations of T tokens, each counted `weight_T` (>= 0) times, or once."""
        x_TI = x_TI.detach().to(torch.float32)
        if weight_T is not None:
            counted_T = weight_T > 0
            x_TI, weight_T = x_TI[counted_T], weight_T[counted_T].to(torch.float32)
        if x_TI.shape[0] == 0:
            return
        abs_TI = x_TI.abs()
        self._abs_max_I = torch.maximum(self._abs_max_I, abs_TI.amax(dim=0))
        self._n_tokens += x_TI.shape[0]
        if weight_T is None:
            self._abs_sum_I += abs_TI.sum(dim=0)
            self._total_weight += x_TI.shape[0]
            self._total_square += x_TI.shape[0]
        else:
            self._abs_sum_I += weight_T @ abs_TI
            self._total_weight += weight_T.sum(dtype=torch.float64).item()
            self._total_square += weight_T.double().square().sum().item()
            x_TI = x_TI * weight_T.sqrt()[:, None]
        _add_gram(self._sum_II, x_TI)

    def statistics(self) -> InputStatistics:
        """Means over the tokens so far.

        Raises `CalibrationError` when there were none, or when an activation was NaN or infinite.
        """
        if self._n_tokens == 0:
            raise CalibrationError(
                "no calibration token reached this input",
                allowed="at least one token",
                hint="use more or longer calibration samples, or quantize it round-to-nearest",
            )
        # In place from here on: the Hessian of R1's widest input has 1.4 GB.
        hessian_II = self._sum_II.tril().div_(self._total_weight)
        _mirror(hessian_II)
        if not all_finite(hessian_II):
            raise CalibrationError(
                "the activations hold NaN or infinity, or their squares overflow float32",
                hint="run calibration in float32, and check the checkpoint's earlier layers",
            )
        return InputStatistics(
            hessian_II=hessian_II,
            abs_max_I=self._abs_max_I.clone(),
            abs_mean_I=self._abs_sum_I / self._total_weight,
            n_tokens=self._n_tokens,
            design_effect=self._n_tokens * self._total_square / self._total_weight**2,
        )


def _add_gram(sum_II: Tensor, x_TI: Tensor) -> None:
    """Add X^T X in place: the lower triangle, and above it whatever the blocks cover."""
    n_columns = sum_II.shape[0]
    for start in range(0, n_columns, _TRIANGLE_BLOCK):
        stop = min(start + _TRIANGLE_BLOCK, n_columns)
        sum_II[start:stop, :stop].addmm_(x_TI[:, start:stop].T, x_TI[:, :stop])


def _mirror(lower_II: Tensor) -> None:
    """Copy a lower triangle above the diagonal, in place, some rows at a time."""
    n_columns = lower_II.shape[0]
    for start in range(0, n_columns, _TRIANGLE_BLOCK):
        stop = min(start + _TRIANGLE_BLOCK, n_columns)
        lower_II[start:stop, stop:] = lower_II[stop:, start:stop].T
        corner = lower_II[start:stop, start:stop]
        corner += corner.tril(-1).T


def output_error(difference_OI: Tensor, hessian_II: Tensor) -> float:
    """tr(D H D^T): mean squared output error, summed over the rows, of weights off by D."""
    return torch.sum((difference_OI @ hessian_II) * difference_OI, dtype=torch.float64).item()
