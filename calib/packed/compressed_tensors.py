"""compressed-tensors checkpoints of integers: `pack-quantized` and `int-quantized`.

    weight_packed      int32 (O, I bits / 32)    codes shifted to 0 .. 2**bits - 1
    weight_scale       float (O, G)
    weight_zero_point  int32 (O bits / 32, G)    packed along the rows, shifted like codes
    weight_shape       int (2)                   O and I
    weight_g_idx       int32 (I)                 with "actorder": "group"

`int-quantized` has the codes as `weight` int8 (O, I), 8 bits, and zero points int8 (O, G).

Shape legend: O output rows, I input columns, G groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightfit.calib.config import ModelConfig
from tightfit.calib.packed.bits import WORD_BITS, unpack_words
from tightfit.calib.packed.options import PER_CHANNEL, group_size, one_of, unread
from tightfit.calib.packed.scheme import FLOATS, WEIGHT, PackedScheme, Part
from tightfit.calib.packed.stored import StoredInteger
from tightfit.errors import CheckpointError

PACKED, PLAIN = "pack-quantized", "int-quantized"
INTEGER_FORMATS = (PACKED, PLAIN)
_BITS = {PACKED: (4, 8), PLAIN: (8,)}
_SIGN_BIT = 128  # what int8 and shifted uint8 codes differ by
_ASYMMETRIC = '"symmetric": false'
_ORDERED = ("group", "dynamic")  # two names of the same


@dataclass(frozen=True, kw_only=True, slots=True)
class PackQuantizedScheme(PackedScheme):
    """Codes in 32-bit words."""

    codes: ClassVar[str] = ".weight_packed"
    codes_dtype: ClassVar[torch.dtype] = torch.int32
    suffixes: ClassVar[tuple[str, ...]] = (
        ".weight_packed",
        ".weight_scale",
        ".weight_zero_point",
        ".weight_shape",
        ".weight_g_idx",
    )
    order: ClassVar[str | None] = ".weight_g_idx"
    asymmetric: ClassVar[str] = _ASYMMETRIC

    @property
    def multiples(self) -> tuple[int, int]:
        """Whole words along the columns, so that headers tell the width."""
        return 1, self.codes_per_cycle

    def shape(self, codes_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(O, I)."""
        n_rows, n_words = codes_shape
        return n_rows, n_words * WORD_BITS // self.bits

    def parts(self, shape: tuple[int, int]) -> Mapping[str, Part]:
        """By suffix."""
        n_rows, n_columns = shape
        n_groups = self.n_groups(n_columns)
        int32 = (torch.int32,)
        zero_shape = (self.n_words(n_rows), n_groups)
        return {
            ".weight_packed": Part(shape=(n_rows, self.n_words(n_columns)), dtypes=int32),
            ".weight_scale": Part(shape=(n_rows, n_groups), dtypes=FLOATS),
            ".weight_shape": Part(shape=(2,), dtypes=(torch.int64, torch.int32)),
            ".weight_zero_point": Part(shape=zero_shape, dtypes=int32, required=not self.symmetric),
            ".weight_g_idx": Part(shape=(n_columns,), dtypes=int32, required=self.act_order),
        }

    def decode(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Codes and zero points unsigned, as packed."""
        codes_OI = unpack_words(parts[".weight_packed"], self.bits)
        scale_OG = parts[".weight_scale"]
        if ".weight_zero_point" not in parts:
            return codes_OI, scale_OG, self.middle_zeros(scale_OG)
        zero_GO = unpack_words(parts[".weight_zero_point"].T, self.bits)
        return codes_OI, scale_OG, zero_GO[:, : len(codes_OI)].T.contiguous()

    def unpack(self, name: str, parts: Mapping[str, Tensor]) -> StoredInteger:
        """Also holds `weight_shape` against the codes."""
        # Not super(): a dataclass with slots is another class than its body sees.
        stored = PackedScheme.unpack(self, name, parts)
        said, shape = tuple(parts[".weight_shape"].tolist()), tuple(stored.codes_OI.shape)
        if said != shape:
            raise CheckpointError(
                f"{name}: weight_shape says {said}",
                allowed=f"its codes and config.json say {shape}",
                hint="the file is damaged: download it again",
            )
        return stored


@dataclass(frozen=True, kw_only=True, slots=True)
class IntQuantizedScheme(PackedScheme):
    """Codes as they are, in int8."""

    codes: ClassVar[str] = WEIGHT
    codes_dtype: ClassVar[torch.dtype] = torch.int8
    suffixes: ClassVar[tuple[str, ...]] = (WEIGHT, ".weight_scale", ".weight_zero_point")
    asymmetric: ClassVar[str] = _ASYMMETRIC

    @property
    def multiples(self) -> tuple[int, int]:
        """Any matrix."""
        return 1, 1

    def shape(self, codes_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(O, I)."""
        return codes_shape

    def parts(self, shape: tuple[int, int]) -> Mapping[str, Part]:
        """By suffix."""
        scale_shape = (shape[0], self.n_groups(shape[1]))
        int8 = (torch.int8,)
        return {
            WEIGHT: Part(shape=shape, dtypes=int8),
            ".weight_scale": Part(shape=scale_shape, dtypes=FLOATS),
            ".weight_zero_point": Part(shape=scale_shape, dtypes=int8, required=not self.symmetric),
        }

    def decode(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Codes and zero points unsigned."""
        codes_OI, scale_OG = _unsigned(parts[WEIGHT]), parts[".weight_scale"]
        if ".weight_zero_point" not in parts:
            return codes_OI, scale_OG, self.middle_zeros(scale_OG)
        return codes_OI, scale_OG, _unsigned(parts[".weight_zero_point"])


def read_integers(section: ModelConfig, form: str) -> PackedScheme:
    """The scheme of a `quantization_config` of one of `INTEGER_FORMATS`.

    Raises `CheckpointError` for what is not read, and for groups of several schemes.
    """
    nothing = ModelConfig(origin=section.origin, values={})
    groups = section.section("config_groups") or nothing
    schemes: dict[str, PackedScheme] = {}
    for name in groups.values:
        group = groups.section(name) or nothing
        weights = group.section("weights")
        if weights is None:
            continue
        one_of(group, "format", group.text("format", form), (form,))
        schemes[name] = _read_weights(weights, form)
    if len(set(schemes.values())) != 1:
        held = ", ".join(f"{name} {scheme.grid}" for name, scheme in schemes.items())
        raise unread(section, "config_groups", held, "groups that store weights alike")
    return next(iter(schemes.values()))


def _read_weights(weights: ModelConfig, form: str) -> PackedScheme:
    one_of(weights, "type", weights.text("type"), ("int",))
    bits = one_of(weights, "num_bits", weights.integer("num_bits"), _BITS[form])
    strategy = one_of(weights, "strategy", weights.text("strategy"), ("group", "channel"))
    size = PER_CHANNEL if strategy == "channel" else group_size(weights, "group_size")
    symmetric = weights.flag("symmetric", True)
    if form == PLAIN:
        return IntQuantizedScheme(bits=bits, group_size=size, symmetric=symmetric)
    return PackQuantizedScheme(
        bits=bits,
        group_size=size,
        symmetric=symmetric,
        act_order=weights.values.get("actorder") in _ORDERED,
    )


def _unsigned(codes: Tensor) -> Tensor:
    """uint8 of int8, shifted by half the range."""
    return codes.view(torch.uint8) ^ _SIGN_BIT
