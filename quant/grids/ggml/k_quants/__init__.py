"""The K-quants: super-blocks of 256 weights, one type per file."""

from tightfit.quant.grids.ggml.k_quants.q2_k import Q2_K
from tightfit.quant.grids.ggml.k_quants.q3_k import Q3_K
from tightfit.quant.grids.ggml.k_quants.q4_k import Q4_K
from tightfit.quant.grids.ggml.k_quants.q5_k import Q5_K
from tightfit.quant.grids.ggml.k_quants.q6_k import Q6_K

__all__ = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
