"""Synthetic outlier channels: the same function, but as hard to quantize as a large model.

What: at each site some channels of an activation are scaled up by a power of two where they are
produced (a norm's weight, or the rows of `up_proj`) and down by the same power in the columns of
every linear that reads them:  W x = (W diag(1/s)) (diag(s) x).
Why: large language models grow such channels, and they are what AWQ and GPTQ earn their keep on;
a model of this size has none, and plain rounding costs it nothing measurable at 4 bits.
Powers of two are exact in every floating format, so the logits stay equal bit for bit, in
BF16 too (no value comes near the subnormal range).
Source: the equivalent transformation of SmoothQuant (arXiv:2211.10438, section 4) and AWQ
(arXiv:2306.00978, section 3.2), run backwards.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Qwen2ForCausalLM


@dataclass(frozen=True, kw_only=True, slots=True)
class OutlierConfig:
    """Which channels grow, and by how much."""

    seed: int = 1
    """Seed of the choice of channels, not the model's: of two tried, the one where 2 bits cost all.

    Which channels are hit matters as much as how many: seed 0 left 2 bits a fifth of the score.
    """
    channels_per_site: int = 8
    """Channels that grow at each site, of 256 or 768; 12 cost 3 bits twice as much."""
    factors: tuple[int, ...] = (4, 8, 16)
    """Powers of two, drawn uniformly; real outliers are 10 to 100 times the median channel."""

    def __post_init__(self) -> None:
        for factor in self.factors:
            if factor < 1 or factor & (factor - 1):
                raise ValueError(f"outlier factors must be powers of two to be exact, got {factor}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """An activation: what produces it and what reads it."""

    producers: tuple[torch.Tensor, ...]
    """Tensors whose leading dimension is the channel: a norm's weight, a linear's rows, a bias."""
    readers: tuple[nn.Linear, ...]
    """Linears whose columns are the channel."""


def outlier_sites(model: Qwen2ForCausalLM) -> list[Site]:
    """Three sites a block: both norms' outputs and the input of `down_proj`."""
    sites = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        sites += [
            Site(
                producers=(layer.input_layernorm.weight,),
                readers=(attention.q_proj, attention.k_proj, attention.v_proj),
            ),
            Site(
                producers=(layer.post_attention_layernorm.weight,),
                readers=(mlp.gate_proj, mlp.up_proj),
            ),
            # down_proj reads silu(gate) * up, which is linear in up_proj's rows.
            Site(producers=(mlp.up_proj.weight,), readers=(mlp.down_proj,)),
        ]
    return sites


@torch.no_grad()
def scale_channels(site: Site, scale_C: torch.Tensor) -> None:
    """Multiplies the producers' channels by `scale_C`, divides the readers' columns, in place."""
    for tensor in site.producers:
        tensor *= scale_C.view(-1, *[1] * (tensor.dim() - 1))
    for reader in site.readers:
        reader.weight /= scale_C


def with_outliers(model: Qwen2ForCausalLM, config: OutlierConfig) -> Qwen2ForCausalLM:
    """A copy of `model` that computes the same logits through outlier channels."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(config.seed)
    factors = torch.tensor(config.factors, dtype=torch.float32)
    for site in outlier_sites(model):
        width = site.readers[0].in_features
        chosen = torch.randperm(width, generator=generator)[: config.channels_per_site]
        drawn = torch.randint(len(factors), (len(chosen),), generator=generator)
        scale_C = torch.ones(width)
        scale_C[chosen] = factors[drawn]
        scale_channels(site, scale_C)
    return model


@torch.inference_mode()
def max_logit_difference(
    one: Qwen2ForCausalLM, other: Qwen2ForCausalLM, batches: list[torch.Tensor]
) -> float:
    """The largest absolute difference of two models' logits over batches of token ids."""
    differences = [
        (one(input_ids=ids).logits - other(input_ids=ids).logits).abs().max() for ids in batches
    ]
    return float(torch.stack(differences).max())
