"""Parity: llama.cpp on the shipped file against transformers on the dequantized weights.

Both compute the same function of the same numbers, so what differs is rounding inside the runtime:
llama.cpp rounds activations to 8 bits in blocks before it multiplies them with quantized weights. A
wrong tensor name, row order or rope setting is far above that.

Shape legend: T positions, V vocabulary.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tightfit.calib.architecture import architecture_of
from tightfit.calib.calibration import CalibrationOptions, load_calibration
from tightfit.calib.config import read_config
from tightfit.calib.decoder import Decoder
from tightfit.calib.dimensions import dimensions_of
from tightfit.calib.tokenizer import load_tokenizer
from tightfit.drift.metrics import DriftAccumulator
from tightfit.export.gguf.layout import gguf_layout
from tightfit.export.gguf.readback import read_tensors
from tightfit.export.manifest import Parity
from tightfit.runtimes.llamacpp import LlamaCpp

N_SEQUENCES = 4
SEQUENCE_TOKENS = 256
"""Tokens of a sequence at most; together some hundred positions, enough to show a wrong layout."""
ROUNDING_PER_BLOCK = 0.02
"""Relative difference that a block may add: 8-bit activations measure 0.001 to 0.015 (llama.cpp on
the CPU; tiny-r1, SmolLM2, random checkpoints), two exchanged tensors of one block 0.05 to 0.3."""


def measure_parity(folder: Path, gguf: Path) -> Parity:
    """Logits of both on the same token ids."""
    sequences = _token_sequences(folder)
    accumulator = DriftAccumulator()
    differences: list[Tensor] = []
    references: list[Tensor] = []
    with LlamaCpp(gguf, context_tokens=SEQUENCE_TOKENS, kv_type="f32") as runtime:
        for sample, reference_TV in enumerate(_reference(folder, gguf, sequences)):
            ids = sequences[sample]
            actual = runtime.logits(ids)
            differences.append(torch.from_numpy(actual.copy()) - reference_TV)
            references.append(reference_TV)
            # The last position has no next token to predict.
            reference = reference_TV.numpy()
            accumulator.update(reference[:-1], actual[:-1], np.array(ids[1:]), sample=sample)
        name = runtime.system_info.label
    drift = accumulator.result()
    difference_TV = torch.cat(differences)
    relative = (_spread(difference_TV) / _spread(torch.cat(references))).item()
    return Parity(
        runtime=name,
        tokens=drift.n_tokens,
        mean_abs_difference=difference_TV.abs().mean().item(),
        max_abs_difference=difference_TV.abs().max().item(),
        relative_difference=relative,
        mean_kl_nats=drift.kl_mean_nats,
        max_kl_nats=drift.kl_max_nats,
        top1_agreement=drift.top1_agreement,
        passed=relative <= relative_limit(dimensions_of(read_config(folder)).n_layers),
    )


def relative_limit(n_blocks: int) -> float:
    """Largest relative difference that rounding explains: that of the blocks adds as noise does."""
    return ROUNDING_PER_BLOCK * math.sqrt(n_blocks)


def _spread(logits_TV: Tensor) -> Tensor:
    """Root mean square after each position's mean is taken off, which softmax does not see."""
    return (logits_TV - logits_TV.mean(dim=-1, keepdim=True)).square().mean().sqrt()


def _token_sequences(folder: Path) -> list[list[int]]:
    options = CalibrationOptions(samples=N_SEQUENCES, max_tokens=SEQUENCE_TOKENS)
    calibration = load_calibration(load_tokenizer(folder), options)
    return [list(sample.ids) for sample in calibration.samples]


def _reference(folder: Path, gguf: Path, sequences: list[list[int]]) -> Iterator[Tensor]:
    """Transformers on the weights that the `gguf` package reads from the file."""
    config = read_config(folder)
    architecture = architecture_of(config.text("model_type"))
    places = {
        place.checkpoint_name: place for place in gguf_layout(architecture, dimensions_of(config))
    }
    stored = {tensor.name: tensor for tensor in read_tensors(gguf)}

    def load(name: str) -> Tensor:
        # A tied head is the embedding.
        place = places.get(name, places[architecture.embedding])
        return torch.from_numpy(place.from_gguf(stored[place.gguf_name].values()).copy())

    return Decoder(folder, architecture, torch.device("cpu")).logits(sequences, load)
