"""Integer grids of 2 to 8 bits, per group of columns or per row, symmetric or asymmetric.

    w = scale * (code - zero),    0 <= code < 2**bits

with a float16 scale per row and group. Symmetric grids fix zero = 2**(bits - 1), so their levels
are -2**(bits-1) .. 2**(bits-1) - 1 stored unsigned, as GPTQ, compressed-tensors and ONNX's
MatMulNBits store them; asymmetric grids keep a zero point per group. The product is exact in
float32 (11 significant bits times at most 9), so every reader gets the same number.

The fit (see `integer_fit`) always judges the scale as it is stored, rounded to float16.

Packed row: the codes (`bitpacking`), then the scales as little-endian float16, then, when
asymmetric, the zero points packed like codes.

Shape legend: O output rows, I input columns, K columns at hand, G groups, B bytes.
"""

import torch
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.grid import Grid, Lattice, Steps, check_finite
from tightfit.quant.grids.bitpacking import BITS_PER_BYTE, pack_codes, packed_bytes, unpack_codes
from tightfit.quant.grids.integer_fit import LARGEST_SCALE, fit_groups
from tightfit.quant.tensor import Params, QuantizedTensor

SUPPORTED_BITS = range(2, 9)
GROUP_SIZES = (32, 64, 128)
PER_CHANNEL = 0
"""Group size that stands for one scale per row."""
_SCALE_BYTES = 2


class IntegerGrid(Grid):
    """INT`bits` in groups of `group_size` columns (0: one scale per row)."""

    def __init__(self, bits: int, group_size: int, *, symmetric: bool) -> None:
        self.bits = bits
        self.group_size = group_size
        self.symmetric = symmetric
        self.span = group_size
        group = "channel" if group_size == PER_CHANNEL else f"g{group_size}"
        self.name = f"int{bits}-{group}-{'sym' if symmetric else 'asym'}"

    @property
    def reach(self) -> float:
        """The largest level times the largest float16."""
        return LARGEST_SCALE * ((1 << (self.bits - 1)) - 1)

    @property
    def steps(self) -> Steps:
        """From the middle or the zero point."""
        middle = 1 << (self.bits - 1)
        return Steps(top_code=(1 << self.bits) - 1, zero=middle if self.symmetric else None)

    def check_shape(self, shape: tuple[int, int]) -> None:
        """Refuse widths that the group size does not divide."""
        n_columns = shape[1]
        if self.group_size == PER_CHANNEL or n_columns % self.group_size == 0:
            return
        dividing = [str(size) for size in GROUP_SIZES if n_columns % size == 0]
        raise QuantizationError(
            f"{self.name} cannot hold a matrix of shape {shape}: its width {n_columns} is not a "
            f"multiple of {self.group_size}",
            allowed=f"group sizes that divide {n_columns}: {', '.join(dividing) or 'none'}",
            hint="choose a grid with such a group size, or one scale per row (int*-channel-*)",
        )

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Bits of a packed row over its weights."""
        self.check_shape(shape)
        return self._row_bytes(shape[1]) * BITS_PER_BYTE / shape[1]

    def search(self, w_OK: Tensor, importance_OK: Tensor | None = None) -> Params:
        """`scale` float16 (O, G) and, when asymmetric, `zero` uint8 (O, G).

        None as importance weighs all weights alike.
        """
        n_rows, n_columns = w_OK.shape
        width = self.group_size or n_columns
        weight_OGK = None
        if importance_OK is not None:
            weight_OGK = importance_OK.reshape(importance_OK.shape[0], -1, width)
        scale_OG, zero_OG = fit_groups(
            w_OK.reshape(n_rows, -1, width), weight_OGK, bits=self.bits, symmetric=self.symmetric
        )
        params = {"scale": scale_OG.to(torch.float16)}
        if not self.symmetric:
            params["zero"] = zero_OG.to(torch.uint8)
        return params

    def lattice(self, params: Params, n_rows: int, n_columns: int) -> Lattice:
        """One scale and zero point per weight."""
        width = self.group_size or n_columns

        def expand(part_OG: Tensor) -> Tensor:
            return part_OG.float()[:, :, None].expand(-1, -1, width).reshape(n_rows, n_columns)

        if self.symmetric:
            middle = float(1 << (self.bits - 1))
            zero_OK = torch.full((1, n_columns), middle, device=params["scale"].device)
        else:
            zero_OK = expand(params["zero"])
        return Lattice(scale_OK=expand(params["scale"]), zero_OK=zero_OK)

    def round(self, w_OK: Tensor, lattice: Lattice) -> Tensor:
        """Nearest codes; ties go to the even multiple of the scale."""
        assert lattice.zero_OK is not None
        steps_OK = torch.div(w_OK, lattice.scale_OK).round_()
        return steps_OK.add_(lattice.zero_OK).clamp_(0, (1 << self.bits) - 1).to(torch.uint8)

    def decode(self, codes_OK: Tensor, lattice: Lattice) -> Tensor:
        """Scale * (code - zero)."""
        assert lattice.zero_OK is not None
        return codes_OK.float().sub_(lattice.zero_OK).mul_(lattice.scale_OK)

    def dequantize(self, tensor: QuantizedTensor) -> Tensor:
        """float32 (O, I), honouring the groups of an act-order."""
        if tensor.group_index_I is None:
            return super().dequantize(tensor)
        group_I = tensor.group_index_I.long()
        n_groups = tensor.params["scale"].shape[1]
        one_per_group = self.lattice(tensor.params, tensor.shape[0], n_groups * self.group_size)
        return self.decode(tensor.codes_OI, one_per_group.columns(group_I * self.group_size))

    def pack(self, tensor: QuantizedTensor) -> Tensor:
        """uint8 (O, B): codes, scales, zero points."""
        assert tensor.group_index_I is None, "a packed row has no place for an act-order"
        parts = [
            pack_codes(tensor.codes_OI, self.bits),
            tensor.params["scale"].contiguous().view(torch.uint8),
        ]
        if not self.symmetric:
            parts.append(pack_codes(tensor.params["zero"], self.bits))
        return torch.cat(parts, dim=1)

    def unpack(self, data: Tensor, shape: tuple[int, int]) -> QuantizedTensor:
        """The inverse of `pack`."""
        n_columns = shape[1]
        n_groups = self._n_groups(n_columns)
        assert data.shape == (shape[0], self._row_bytes(n_columns)), data.shape
        scale_start = packed_bytes(n_columns, self.bits)
        zero_start = scale_start + _SCALE_BYTES * n_groups
        scale_bytes = data[:, scale_start:zero_start].contiguous()
        # A view needs its own aligned storage: `contiguous` may return the slice itself.
        params = {"scale": scale_bytes.clone().view(torch.float16)}
        if not self.symmetric:
            params["zero"] = unpack_codes(data[:, zero_start:], self.bits, n_groups)
        return QuantizedTensor(
            grid=self.name,
            shape=shape,
            codes_OI=unpack_codes(data, self.bits, n_columns),
            params=params,
        )

    def keep(
        self,
        codes_OI: Tensor,
        scale_OG: Tensor,
        zero_OG: Tensor,
        group_index_I: Tensor | None = None,
    ) -> QuantizedTensor:
        """Stored codes uint8 (O, I), scales (O, G) and zero points uint8 (O, G) as they are.

        Raises `QuantizationError` for a scale that float16 does not hold, and on a symmetric grid
        for a zero point that is not the middle.
        """
        check_finite(scale_OG.float())
        scale_half_OG = scale_OG.to(torch.float16)
        changed = int((scale_half_OG.double() != scale_OG.double()).sum())
        if changed:
            raise QuantizationError(
                f"{changed} of {scale_OG.numel()} scales are no float16 numbers",
                allowed=f"the scales of {self.name} are float16, in every format",
                hint="quantize the original checkpoint instead",
            )
        params = {"scale": scale_half_OG}
        if not self.symmetric:
            params["zero"] = zero_OG
        elif bool((zero_OG != 1 << (self.bits - 1)).any()):
            raise QuantizationError(
                f"a zero point of a symmetric {self.bits}-bit matrix is not {1 << (self.bits - 1)}",
                hint="the checkpoint says that it is symmetric, and it is not: correct its "
                "quantization_config",
            )
        n_rows, n_columns = codes_OI.shape
        return QuantizedTensor(
            grid=self.name,
            shape=(n_rows, n_columns),
            codes_OI=codes_OI,
            params=params,
            group_index_I=group_index_I,
        )

    def _n_groups(self, n_columns: int) -> int:
        return n_columns // self.group_size if self.group_size else 1

    def _row_bytes(self, n_columns: int) -> int:
        n_groups = self._n_groups(n_columns)
        zero_bytes = 0 if self.symmetric else packed_bytes(n_groups, self.bits)
        return packed_bytes(n_columns, self.bits) + _SCALE_BYTES * n_groups + zero_bytes


INTEGER_GRIDS: tuple[Grid, ...] = tuple(
    IntegerGrid(bits, group_size, symmetric=symmetric)
    for bits in SUPPORTED_BITS
    for group_size in (*GROUP_SIZES, PER_CHANNEL)
    for symmetric in (True, False)
)
"""`int{2..8}-g{32,64,128}-{sym,asym}` and `int{2..8}-channel-{sym,asym}`."""
