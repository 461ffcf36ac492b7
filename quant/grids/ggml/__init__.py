"""ggml's block formats as grids, under the names of the GGUF specification."""

from tightfit.quant.grids.ggml.base import GgmlGrid
from tightfit.quant.grids.ggml.iq4 import IQ4_NL, IQ4_XS
from tightfit.quant.grids.ggml.k_quants import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from tightfit.quant.grids.ggml.legacy import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0

GGML_GRIDS: tuple[GgmlGrid, ...] = (
    Q4_0(),
    Q4_1(),
    Q5_0(),
    Q5_1(),
    Q8_0(),
    Q2_K(),
    Q3_K(),
    Q4_K(),
    Q5_K(),
    Q6_K(),
    IQ4_NL(),
    IQ4_XS(),
)
