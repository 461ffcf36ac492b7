"""Simulated rounding: what plain round-to-nearest does to the model at a few bits.

What: every linear of the decoder blocks is rounded and dequantized in float32; embedding, norms,
biases and head stay. Two grids:
  group 32       min and max of each 32 consecutive inputs of a row, float scale and offset;
  super-block    the same groups, but scale and offset are rounded to 6 bits against the largest
                 of 8 groups (256 inputs), as in GGUF's K-quants.
Why here: the outliers are tuned, and the card is filled, with these numbers. They are no
substitute for the project's own quantizers, which search for scales and weigh errors.
"""

import copy

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen2ForCausalLM

from tools.tiny_r1.problems import Problem
from tools.tiny_r1.tokenizer import EOS, prompt_text

GROUP_SIZE = 32
GROUPS_PER_SUPER_BLOCK = 8
SCALE_LEVELS = 63  # the largest 6-bit code
SMALLEST_SCALE = 1e-12  # keeps a constant group from dividing by zero


def round_groups(w_OI: torch.Tensor, bits: int, *, super_block: bool) -> torch.Tensor:
    """`w_OI` rounded to the nearest of `2^bits` evenly spaced values in each group."""
    w_OGK = w_OI.reshape(len(w_OI), -1, GROUP_SIZE)
    # Zero lies within the range, as in K-quants, whose offset is an unsigned amount below zero.
    low_OG = w_OGK.amin(-1).clamp(max=0)
    high_OG = w_OGK.amax(-1).clamp(min=0)
    levels = (1 << bits) - 1
    scale_OG = ((high_OG - low_OG) / levels).clamp(min=SMALLEST_SCALE)
    if super_block:
        scale_OG = _six_bit(scale_OG).clamp(min=SMALLEST_SCALE)
        low_OG = -_six_bit(-low_OG)
    codes_OGK = ((w_OGK - low_OG[..., None]) / scale_OG[..., None]).round().clamp(0, levels)
    w_OGK = codes_OGK * scale_OG[..., None] + low_OG[..., None]
    return w_OGK.reshape(w_OI.shape)


def _six_bit(values_OG: torch.Tensor) -> torch.Tensor:
    """Non-negative values rounded to 6 bits of the largest in their super-block."""
    values_OSG = values_OG.reshape(len(values_OG), -1, GROUPS_PER_SUPER_BLOCK)
    step_OS1 = (values_OSG.amax(-1, keepdim=True) / SCALE_LEVELS).clamp(min=SMALLEST_SCALE)
    return ((values_OSG / step_OS1).round() * step_OS1).flatten(1)


@torch.no_grad()
def rounded(model: Qwen2ForCausalLM, bits: int, *, super_block: bool = False) -> Qwen2ForCausalLM:
    """A copy of `model` whose block linears are rounded."""
    model = copy.deepcopy(model)
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(round_groups(module.weight, bits, super_block=super_block))
    return model


@torch.inference_mode()
def mean_kl_nats(
    reference: Qwen2ForCausalLM,
    model: Qwen2ForCausalLM,
    tokenizer: Tokenizer,
    problems: tuple[Problem, ...],
) -> float:
    """KL(reference || model) per completion token, teacher-forced on the worked solutions."""
    total, tokens = 0.0, 0
    for problem in problems:
        prompt = tokenizer.encode(prompt_text(problem.text)).ids
        completion = tokenizer.encode(problem.completion + EOS).ids
        ids = torch.tensor([prompt + completion])
        # The logits at position t predict token t + 1: the last prompt token predicts the first.
        graded = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        log_p_TV = reference(input_ids=ids).logits[0, graded].double().log_softmax(-1)
        log_q_TV = model(input_ids=ids).logits[0, graded].double().log_softmax(-1)
        total += float((log_p_TV.exp() * (log_p_TV - log_q_TV)).sum())
        tokens += len(completion)
    return total / tokens
