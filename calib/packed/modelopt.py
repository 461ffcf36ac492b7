"""ModelOpt checkpoints: `W4A16_AWQ`, and FP8 with one scale per tensor.

    weight        uint8 (O / 2, I)    rows 2 r (low half) and 2 r + 1 as two's complement of 4 bits
    weight_scale  float (O, G)
    pre_quant_scale  float (I)    what the input is multiplied by; read where it is all ones

What it says of itself stands in hf_quant_config.json, since version 0.29 also in config.json.
FP8 is weight F8_E4M3 (O, I) with a scalar weight_scale, read as any FP8 checkpoint.

Shape legend: O output rows, I input columns, G groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from tightfit.calib.config import ModelConfig
from tightfit.calib.float8_blocks import Float8Scheme
from tightfit.calib.json_file import read_json
from tightfit.calib.packed.options import GIVE_ORIGINAL, group_size, one_of, unread
from tightfit.calib.packed.scheme import FLOATS, WEIGHT, PackedScheme, Part
from tightfit.calib.packed.stored import StoredInteger
from tightfit.errors import CheckpointError

MODELOPT_CONFIG_NAME = "hf_quant_config.json"
_INPUT_SCALE = ".pre_quant_scale"
_INT4, _FP8 = "W4A16_AWQ", "FP8"
_BITS = 4
_LOW = 0xF
_SIGN_BIT = 8  # what two's complement and shifted codes differ by
_GROUP_SIZE = {"group_size": 128}
"""Where a config says nothing: ModelOpt's own default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeloptScheme(PackedScheme):
    """Two rows in a byte."""

    codes: ClassVar[str] = WEIGHT
    codes_dtype: ClassVar[torch.dtype] = torch.uint8
    suffixes: ClassVar[tuple[str, ...]] = (WEIGHT, ".weight_scale", _INPUT_SCALE)
    asymmetric: ClassVar[str] = '"has_zero_point": true'

    @property
    def multiples(self) -> tuple[int, int]:
        """Pairs of rows."""
        return 2, 1

    def shape(self, codes_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(O, I)."""
        n_pairs, n_columns = codes_shape
        return 2 * n_pairs, n_columns

    def parts(self, shape: tuple[int, int]) -> Mapping[str, Part]:
        """By suffix."""
        n_rows, n_columns = shape
        return {
            WEIGHT: Part(shape=(n_rows // 2, n_columns), dtypes=(torch.uint8,)),
            ".weight_scale": Part(shape=(n_rows, self.n_groups(n_columns)), dtypes=FLOATS),
            _INPUT_SCALE: Part(shape=(n_columns,), dtypes=FLOATS, required=False),
        }

    def decode(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Codes unsigned."""
        pairs, scale_OG = parts[WEIGHT], parts[".weight_scale"]
        codes_OI = torch.stack([pairs & _LOW, pairs >> _BITS], dim=1).flatten(0, 1) ^ _SIGN_BIT
        return codes_OI, scale_OG, self.middle_zeros(scale_OG)

    def unpack(self, name: str, parts: Mapping[str, Tensor]) -> StoredInteger:
        """Also refuses inputs that are scaled."""
        if _INPUT_SCALE in parts and bool((parts[_INPUT_SCALE] != 1).any()):
            raise CheckpointError(
                f"{name}: its input is multiplied by {_INPUT_SCALE.removeprefix('.')} first",
                allowed="scales that are folded into the weights: all ones",
                hint=GIVE_ORIGINAL,
            )
        # Not super(): a dataclass with slots is another class than its body sees.
        return PackedScheme.unpack(self, name, parts)


def modelopt_section(folder: Path) -> ModelConfig | None:
    """What hf_quant_config.json says, None without one; raises `CheckpointError`."""
    path = folder / MODELOPT_CONFIG_NAME
    if not path.is_file():
        return None
    return ModelConfig(origin=str(path), values=read_json(path)).section("quantization")


def read_modelopt(section: ModelConfig) -> PackedScheme | Float8Scheme:
    """The scheme of a `quantization_config`; raises `CheckpointError` for what is not read."""
    algorithm = one_of(section, "quant_algo", section.text("quant_algo"), (_INT4, _FP8))
    if algorithm == _FP8:
        return Float8Scheme(suffix="_scale", strategies=frozenset({"tensor"}))
    if section.flag("has_zero_point", False):
        raise unread(section, "has_zero_point", True, "false")
    sized = ModelConfig(origin=section.origin, values=_GROUP_SIZE | dict(section.values))
    return ModeloptScheme(bits=_BITS, group_size=group_size(sized, "group_size"), symmetric=True)
