"""GPTQ checkpoints, as AutoGPTQ and GPTQModel write them.

    qweight int32 (I bits / 32, O)    the codes of a column of x packed downwards
    qzeros  int32 (G, O bits / 32)    zero points packed along the rows of the weight
    scales  float (G, O)
    g_idx   int32 (I)                 group of every column, optional without an act-order

Format `gptq` (version 1) stores zero points minus one, `gptq_v2` as they are. A zero point of 0 has
no version-1 form that readers agree on: vLLM's kernels take a stored 2**bits - 1 for 2**bits,
GPTQModel for 0, with a carry into the neighbour at 2, 4 and 8 bits. Such a checkpoint is refused.

Shape legend: O output rows, I input columns, G groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightfit.calib.config import ModelConfig
from tightfit.calib.packed.bits import WORD_BITS, unpack_words
from tightfit.calib.packed.options import group_size, one_of, refuse_overrides, unread
from tightfit.calib.packed.scheme import FLOATS, PackedScheme, Part
from tightfit.calib.packed.stored import StoredInteger
from tightfit.errors import CheckpointError

_BITS = (2, 3, 4, 8)
_VERSION_1, _VERSION_2 = "gptq", "gptq_v2"


@dataclass(frozen=True, kw_only=True, slots=True)
class GptqScheme(PackedScheme):
    """GPTQ's layout, version 1 or 2."""

    codes: ClassVar[str] = ".qweight"
    codes_dtype: ClassVar[torch.dtype] = torch.int32
    suffixes: ClassVar[tuple[str, ...]] = (".qweight", ".qzeros", ".scales", ".g_idx")

    order: ClassVar[str | None] = ".g_idx"
    asymmetric: ClassVar[str] = '"sym": false'

    version: int

    @property
    def multiples(self) -> tuple[int, int]:
        """Whole words in both directions."""
        return self.codes_per_cycle, self.codes_per_cycle

    def shape(self, codes_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(O, I)."""
        n_words, n_rows = codes_shape
        return n_rows, n_words * WORD_BITS // self.bits

    def parts(self, shape: tuple[int, int]) -> Mapping[str, Part]:
        """By suffix."""
        n_rows, n_columns = shape
        n_groups = self.n_groups(n_columns)
        int32 = (torch.int32,)
        return {
            ".qweight": Part(shape=(self.n_words(n_columns), n_rows), dtypes=int32),
            ".qzeros": Part(shape=(n_groups, self.n_words(n_rows)), dtypes=int32),
            ".scales": Part(shape=(n_groups, n_rows), dtypes=FLOATS),
            ".g_idx": Part(shape=(n_columns,), dtypes=int32, required=self.act_order),
        }

    def decode(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scales and true zero points."""
        codes_OI = unpack_words(parts[".qweight"].T, self.bits)
        zero_GO = unpack_words(parts[".qzeros"], self.bits)
        if self.version == 1:
            zero_GO += 1
        return codes_OI, parts[".scales"].T.contiguous(), zero_GO.T.contiguous()

    def check(self, name: str, stored: StoredInteger) -> None:
        """Also refuses what version 1 cannot say."""
        largest = (1 << self.bits) - 1
        n_ambiguous = int((stored.zero_OG & largest == 0).sum()) if self.version == 1 else 0
        if n_ambiguous:
            raise CheckpointError(
                f"{name}: {n_ambiguous} of {stored.zero_OG.numel()} zero points are stored as "
                f"{largest}",
                allowed=f"0 to {largest - 1}: GPTQ's version 1 stores them minus one, and its "
                f"readers do not agree whether {largest} is {largest + 1} or 0",
                hint="save the checkpoint as gptq_v2, or give the model that it was made from",
            )
        # Not super(): a dataclass with slots is another class than its body sees.
        PackedScheme.check(self, name, stored)


def read_gptq(section: ModelConfig) -> GptqScheme:
    """The scheme of a `quantization_config`; raises `CheckpointError` for what is not read."""
    refuse_overrides(section)
    if section.flag("is_marlin_format", False):
        raise unread(section, "is_marlin_format", True, "false: Marlin's layout is not read")
    if section.values.get("rotation"):
        raise unread(section, "rotation", section.values["rotation"], "weights as they are used")
    # GPTQModel writes both keys, AutoGPTQ neither.
    keys = [key for key in ("checkpoint_format", "format") if key in section.values]
    forms = {one_of(section, key, section.text(key), (_VERSION_1, _VERSION_2)) for key in keys} or {
        _VERSION_1
    }
    if len(forms) > 1:
        raise unread(section, "format", section.values["format"], "the same as checkpoint_format")
    (form,) = forms
    one_of(section, "pack_dtype", section.text("pack_dtype", "int32"), ("int32",))
    return GptqScheme(
        bits=one_of(section, "bits", section.integer("bits"), _BITS),
        group_size=group_size(section, "group_size"),
        symmetric=section.flag("sym", True),
        version=1 if form == _VERSION_1 else 2,
        act_order=section.flag("desc_act", False),
    )
