"""Parity: llama.cpp on the shipped file against transformers on the dequantized weights.

Both compute the same function of the same numbers, so what differs is rounding inside the runtime:
llama.cpp rounds activations to 8 bits in blocks before it multiplies them with quantized weights. A
wrong tensor name, row order or rope setting is far above that.

Shape legend: T positions, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tightfit.calib.architecture import architecture_of
from tightfit.calib.calibration import CalibrationOptions, load_calibration
from tightfit.calib.config import read_config
from tightfit.calib.decoder import Decoder
from tightfit.calib.dimensions import dimensions_of
from tightfit.calib.tokenizer import load_tokenizer
from tightfit.export.gguf.layout import gguf_layout
from tightfit.export.gguf.readback import read_tensors
from tightfit.export.manifest import Parity
from tightfit.runtimes.llamacpp import LlamaCpp

N_SEQUENCES = 4
SEQUENCE_TOKENS = 256
"""Tokens of a sequence at most; together some hundred positions, enough to show a wrong layout."""
MAX_MEAN_KL_NATS = 0.02
"""8-bit activations measure 1e-5 to 5e-3 on trained models; a wrong layout is above 1."""


def measure_parity(folder: Path, gguf: Path, threads: int | None = None) -> Parity:
    """Logits of both on the same token ids."""
    sequences = _token_sequences(folder)
    with LlamaCpp(gguf, context_tokens=SEQUENCE_TOKENS, threads=threads, kv_type="f32") as runtime:
        name = f"llama.cpp (xllamacpp {runtime.system_info.package_version})"
        shipped = [torch.from_numpy(runtime.logits(ids).copy()) for ids in sequences]
    differences: list[Tensor] = []
    divergences: list[Tensor] = []
    agreements: list[Tensor] = []
    for actual_TV, reference_TV in zip(shipped, _reference(folder, gguf, sequences), strict=True):
        differences.append((actual_TV - reference_TV).abs().flatten())
        log_p_TV = reference_TV.double().log_softmax(-1)
        log_q_TV = actual_TV.double().log_softmax(-1)
        divergences.append((log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1))
        agreements.append(reference_TV.argmax(-1) == actual_TV.argmax(-1))
    difference = torch.cat(differences)
    divergence_T = torch.cat(divergences)
    mean_kl = divergence_T.mean().item()
    return Parity(
        runtime=name,
        tokens=divergence_T.numel(),
        mean_abs_difference=difference.mean().item(),
        max_abs_difference=difference.max().item(),
        mean_kl_nats=mean_kl,
        max_kl_nats=divergence_T.max().item(),
        top1_agreement=torch.cat(agreements).double().mean().item(),
        passed=bool(mean_kl <= MAX_MEAN_KL_NATS),
    )


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
