"""AWQ checkpoints in AutoAWQ's GEMM layout: four bits, interleaved.

    qweight int32 (I, O / 8)    eight rows of the weight in a word
    qzeros  int32 (G, O / 8)    in the same order
    scales  float (G, O)

The four bits at 4 p of a word are row 8 w + (0, 2, 4, 6, 1, 3, 5, 7)[p]: the order in which the
CUDA kernel unpacks two halves of a word at once. GEMV layouts pack along the columns and are
refused.

Shape legend: O output rows, I input columns, G groups, W words, P places in a word.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightfit.calib.config import ModelConfig
from tightfit.calib.packed.bits import unpack_words
from tightfit.calib.packed.options import group_size, one_of, refuse_overrides
from tightfit.calib.packed.scheme import FLOATS, PackedScheme, Part

_BITS = 4
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True, slots=True)
class AwqScheme(PackedScheme):
    """AWQ's GEMM layout."""

    codes: ClassVar[str] = ".qweight"
    codes_dtype: ClassVar[torch.dtype] = torch.int32
    suffixes: ClassVar[tuple[str, ...]] = (".qweight", ".qzeros", ".scales")
    asymmetric: ClassVar[str] = '"zero_point": true'

    @property
    def multiples(self) -> tuple[int, int]:
        """Whole words along the rows."""
        return self.codes_per_cycle, 1

    def shape(self, codes_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(O, I)."""
        n_columns, n_words = codes_shape
        return n_words * self.codes_per_cycle, n_columns

    def parts(self, shape: tuple[int, int]) -> Mapping[str, Part]:
        """By suffix."""
        n_rows, n_columns = shape
        n_words, n_groups = self.n_words(n_rows), self.n_groups(n_columns)
        return {
            ".qweight": Part(shape=(n_columns, n_words), dtypes=(torch.int32,)),
            ".qzeros": Part(shape=(n_groups, n_words), dtypes=(torch.int32,)),
            ".scales": Part(shape=(n_groups, n_rows), dtypes=FLOATS),
        }

    def decode(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows in their own order."""
        zero_OG = _in_order(parts[".qzeros"])
        return _in_order(parts[".qweight"]), parts[".scales"].T.contiguous(), zero_OG


def read_awq(section: ModelConfig) -> AwqScheme:
    """The scheme of a `quantization_config`; raises `CheckpointError` for what is not read."""
    refuse_overrides(section)
    # AutoAWQ writes `version`, GPTQModel the other two as well.
    for key in ("version", "format", "checkpoint_format"):
        one_of(section, key, section.text(key, "gemm").lower(), ("gemm",))
    return AwqScheme(
        bits=one_of(section, "bits", section.integer("bits"), (_BITS,)),
        group_size=group_size(section, "group_size"),
        symmetric=not section.flag("zero_point", True),
    )


def _in_order(words_XW: Tensor) -> Tensor:
    """uint8 (O, X) of words (X, W), X columns or groups."""
    mixed_XWP = unpack_words(words_XW, _BITS).reshape(*words_XW.shape, len(_ORDER))
    rows_XWP = torch.empty_like(mixed_XWP)
    rows_XWP[:, :, list(_ORDER)] = mixed_XWP
    return rows_XWP.flatten(1).T.contiguous()
