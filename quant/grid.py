"""What a grid is: a set of representable numbers with its storage.

A grid fits its parameters to weights under an importance weighting, rounds values to the nearest
level, and gives them back:

    w = scale * (level[code] - zero) + offset

with float32 `scale`, integer `zero` and float32 `offset` constant over a group of columns. Every
format here is of this form (integer grids have a zero point, ggml's `_1` and `_K` types an offset,
the others neither), so an algorithm such as GPTQ needs one column loop for all of them.

Shape legend: O output rows, I input columns, K columns of the span at hand, L levels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.tensor import Params, QuantizedTensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lattice:
    """The numbers that each weight of a span may take, one entry per weight or broadcastable."""

    scale_OK: Tensor
    """float32; 0 where the whole group is zero."""
    zero_OK: Tensor | None = None
    """float32 holding integers: the zero point, in code units."""
    offset_OK: Tensor | None = None
    """float32, added last."""

    def columns(self, index_K: Tensor) -> "Lattice":
        """The lattice of a selection of columns."""

        def pick(part_OK: Tensor | None) -> Tensor | None:
            return None if part_OK is None else part_OK.index_select(1, index_K)

        return Lattice(
            scale_OK=self.scale_OK.index_select(1, index_K),
            zero_OK=pick(self.zero_OK),
            offset_OK=pick(self.offset_OK),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Rounding to levels that are consecutive integers.

    code = clamp(round((w - offset) / scale) + zero, 0, top_code),    0 for a scale of 0
    """

    top_code: int
    zero: int | None
    """None: that of the lattice."""


class Grid(ABC):
    """A set of representable numbers with its storage."""

    name: str
    """Registered name; for ggml types the name in the GGUF specification."""
    span: int
    """Columns whose parameters are fitted together (256 for a K-quant super-block); 0: all."""
    rows_share_params: bool = False
    """Whether one parameter serves several rows, so that stacked matrices would mix theirs."""

    @property
    @abstractmethod
    def reach(self) -> float:
        """Largest magnitude that its largest scale gives."""

    @property
    def steps(self) -> Steps | None:
        """What `round` does, for kernels; None: something else."""
        return None

    @abstractmethod
    def check_shape(self, shape: tuple[int, int]) -> None:
        """Raise `QuantizationError` when a matrix of this shape cannot be stored on the grid."""

    @abstractmethod
    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Stored bits divided by weights, parameters included, exact for this shape."""

    def fit(self, w_OK: Tensor, importance_OK: Tensor | None = None) -> Params:
        """Parameters that minimize sum(importance * (w - round(w))**2) over whole spans.

        `w_OK` is float32; `importance_OK` is float32, non-negative, (1, K) or (O, K); None weighs
        as the format's own reference quantizer does without an importance matrix.
        Raises `QuantizationError` when a value is NaN, infinite or out of range, and when an
        importance is negative.
        """
        check_finite(w_OK)
        n_rows, n_columns = w_OK.shape
        self.check_shape((n_rows, n_columns))
        self._check_range(w_OK)
        check_importance(importance_OK)
        params = self.search(w_OK, importance_OK)
        self.check_params(params)
        return params

    @abstractmethod
    def search(self, w_OK: Tensor, importance_OK: Tensor | None = None) -> Params:
        """What `fit` gives, without its checks: each of them waits for the device."""

    def check_params(self, params: Params) -> None:
        """Raise `QuantizationError` when parameters that were searched are no finite numbers."""
        for name, part in params.items():
            if part.is_floating_point() and not all_finite(part):
                raise self._out_of_range(f"weights whose {name} overflows are")

    def _check_range(self, w_OK: Tensor) -> None:
        """Refuse weights that no scale reaches, before they overflow a sum."""
        largest = float(torch.stack(torch.aminmax(w_OK)).abs().max()) if w_OK.numel() else 0.0
        if largest > self.reach:
            raise self._out_of_range(f"a weight of magnitude {largest:.4g} is")

    def _out_of_range(self, problem: str) -> QuantizationError:
        return QuantizationError(
            f"{problem} out of the range of {self.name}",
            allowed=f"magnitudes up to {self.reach:.4g}, which its largest scale gives",
            hint="such weights mean a damaged checkpoint; if they are wanted, keep the tensor "
            "unquantized",
        )

    @abstractmethod
    def lattice(self, params: Params, n_rows: int, n_columns: int) -> Lattice:
        """Expand stored parameters to one scale, zero and offset per weight (O, K), in float32."""

    @abstractmethod
    def round(self, w_OK: Tensor, lattice: Lattice) -> Tensor:
        """uint8 codes (O, K) of the levels nearest to `w_OK`."""

    @abstractmethod
    def decode(self, codes_OK: Tensor, lattice: Lattice) -> Tensor:
        """float32 (O, K) values of the codes, in the operation order of the format's reader."""

    @abstractmethod
    def pack(self, tensor: QuantizedTensor) -> Tensor:
        """uint8 (O, bytes per row), exactly as the format stores it."""

    @abstractmethod
    def unpack(self, data: Tensor, shape: tuple[int, int]) -> QuantizedTensor:
        """The inverse of `pack`."""

    def dequantize(self, tensor: QuantizedTensor) -> Tensor:
        """float32 (O, I): the numbers that every reader of the format must get."""
        assert tensor.group_index_I is None, "only integer grids store an act-order"
        lattice = self.lattice(tensor.params, *tensor.shape)
        return self.decode(tensor.codes_OI, lattice)


def join_params(parts: Sequence[Params]) -> Params:
    """Parameters of neighbouring column spans, left to right, as one."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}


def check_importance(importance_OK: Tensor | None) -> None:
    """Refuse an importance that is not a finite, non-negative number."""
    if importance_OK is None:
        return
    bad = int((~(torch.isfinite(importance_OK) & (importance_OK >= 0))).sum())
    if bad:
        raise QuantizationError(
            f"{bad} of {importance_OK.numel()} importances are negative, NaN or infinite",
            allowed="importance is a mean of squares: finite and not negative",
            hint="calibrate again: an activation overflowed, or the importance matrix is damaged",
        )


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    # The extremes are NaN where any value is; `isfinite` of all takes eight times as long.
    return not values.numel() or bool(torch.stack(torch.aminmax(values)).isfinite().all())


def check_finite(w_OK: Tensor) -> None:
    """Refuse weights that hold NaN or infinity."""
    if all_finite(w_OK):
        return
    bad = int((~torch.isfinite(w_OK)).sum())
    if bad:
        raise QuantizationError(
            f"{bad} of {w_OK.numel()} weights are NaN or infinite",
            allowed="every weight must be a finite number",
            hint="the checkpoint is damaged or was saved after a diverged training: download it "
            "again, or ask its author",
        )
