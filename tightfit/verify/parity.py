"""Parity: llama.cpp on the shipped file against transformers on the dequantized weights.

Both compute the same function of the same numbers, so what differs is rounding inside the runtime:
llama.cpp rounds activations to 8 bits in blocks before it multiplies them with quantized weights. A
wrong tensor name, row order or rope setting is far above that.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tightfit.calib.architecture import architecture_of
from tightfit.calib.config import read_config
from tightfit.calib.decoder import Decoder
from tightfit.calib.dimensions import dimensions_of
from tightfit.calib.family import ANY_EXPERT
from tightfit.calib.logical import logical_name
from tightfit.export.gguf.layout import gguf_layout
from tightfit.export.gguf.readback import read_tensors
from tightfit.export.manifest import Parity
from tightfit.runtimes.llamacpp import LlamaCpp
from tightfit.verify.comparison import SEQUENCE_TOKENS, LogitComparison, token_sequences

ROUNDING_PER_BLOCK = 0.02
"""Relative difference that a block may add: 8-bit activations measure 0.001 to 0.015 (llama.cpp on
the CPU; tiny-r1, SmolLM2, random checkpoints), two exchanged tensors of one block 0.05 to 0.3."""


def measure_parity(folder: Path, gguf: Path) -> Parity:
    """Logits of both on the same token ids."""
    sequences = token_sequences(folder)
    comparison = LogitComparison()
    with LlamaCpp(gguf, context_tokens=SEQUENCE_TOKENS, kv_type="f32") as runtime:
        references = _reference(folder, gguf, sequences)
        for ids, reference_TV in zip(sequences, references, strict=True):
            comparison.add(reference_TV.numpy(), runtime.logits(ids))
        name = runtime.system_info.label
    dimensions = dimensions_of(read_config(folder))
    # Rounded activations send a token here and there to another expert than the reference's; a
    # wrong tensor shows at every position.
    found = comparison.typical_difference if dimensions.moe else comparison.relative_difference
    passed = found <= relative_limit(dimensions.n_layers)
    return comparison.result(name, passed=passed)


def relative_limit(n_blocks: int) -> float:
    """Largest relative difference that rounding explains: that of the blocks adds as noise does."""
    return ROUNDING_PER_BLOCK * math.sqrt(n_blocks)


def _reference(folder: Path, gguf: Path, sequences: list[list[int]]) -> Iterator[Tensor]:
    """Transformers on the weights that the `gguf` package reads from the file."""
    config = read_config(folder)
    architecture = architecture_of(config.text("model_type"))
    places = {
        place.checkpoint_name: place for place in gguf_layout(architecture, dimensions_of(config))
    }
    stored = {tensor.name: tensor for tensor in read_tensors(gguf)}

    def load(name: str) -> Tensor:
        stack = logical_name(name)
        if stack != name:
            number = int(name[len(stack.partition(ANY_EXPERT)[0]) :].partition(".")[0])
            return torch.from_numpy(stored[places[stack].gguf_name].part(number).copy())
        # A tied head is the embedding.
        place = places.get(name, places[architecture.embedding])
        return torch.from_numpy(place.from_gguf(stored[place.gguf_name].values()).copy())

    return Decoder(folder, architecture, torch.device("cpu")).logits(sequences, load)
