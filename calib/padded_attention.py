"""Attention of unequal head widths in the memory of equal ones.

torch's fused kernel for the CPU wants values as wide as queries and keys. DeepSeek-V3's are
narrower (128 and 192), so torch would make all scores, (B, H, T, T): 10 GB for two sequences of
2048 tokens and R1's 128 heads. Values padded with zeros give the same output, padded with zeros.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "tightfit-padded-sdpa"


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any
) -> tuple[Tensor, None]:
    width = value.shape[-1]
    padded = torch.nn.functional.pad(value, (0, query.shape[-1] - width))
    output, _ = sdpa_attention_forward(module, query, key, padded, *rest, **options)
    return output[..., :width], None


AttentionInterface.register(NAME, _attend)
