"""Parity: transformers on the shipped checkpoint against the same model with our numbers.

transformers loads the folder as any user's program does, through gptqmodel or compressed-tensors,
and dequantizes or multiplies as they do. Those packages compute weights, or what is read by FP8
linears, in 16 bits, so what differs is that rounding; a wrong packing order is far above it.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.decoder import Decoder
from tightfit.export.manifest import Parity
from tightfit.runtimes.transformers import TransformersModel
from tightfit.verify.comparison import SEQUENCE_TOKENS, LogitComparison, token_sequences

WEIGHTS_PER_BLOCK = 0.005
"""Relative difference that a block may add where weights are rounded to 16 bits once more."""
FLOAT8_PER_BLOCK = 0.05
"""The same where what linears read is rounded to FP8, which the reference does not: three bits of
mantissa measure 0.026 a block."""


def measure_checkpoint_parity(folder: Path) -> Parity:
    """Logits of both on the same token ids; `folder` is the checkpoint's own.

    Raises `MissingPackageError` and `RuntimeFailureError` where transformers does not load it.
    """
    sequences = token_sequences(folder)
    comparison = LogitComparison()
    with TransformersModel(folder, context_tokens=SEQUENCE_TOKENS) as runtime:
        references = _reference(folder, sequences)
        for ids, reference_TV in zip(sequences, references, strict=True):
            comparison.add(reference_TV.numpy(), runtime.logits(ids))
        name = runtime.system_info.label
    checkpoint = open_checkpoint(folder)
    per_block = WEIGHTS_PER_BLOCK if checkpoint.float8 is None else FLOAT8_PER_BLOCK
    limit = per_block * math.sqrt(checkpoint.dimensions.n_layers)
    return comparison.result(name, passed=comparison.relative_difference <= limit)


def _reference(folder: Path, sequences: list[list[int]]) -> Iterator[Tensor]:
    """The module classes of transformers on weights that our reader dequantizes."""
    checkpoint = open_checkpoint(folder)
    decoder = Decoder(folder, checkpoint.architecture, torch.device("cpu"))
    return decoder.logits(sequences, checkpoint.load)
