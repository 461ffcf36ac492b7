"""Parity: onnxruntime on the shipped ONNX file against transformers on the dequantized weights.

The file runs as it would in use: a batch of prompts of unequal lengths, padded on the right, is
read at once, then every sequence is continued for some tokens with the cache. The tokens are
given, so an early difference does not change what follows. Both sides compute the same function of
the same numbers, and onnxruntime is asked not to round activations to int8, so what differs is the
order of the sums, and in a float16 graph the rounding of every step.

    relative maximum = max |logit - reference| / max |reference|        over all real positions

Shape legend: B sequences, S tokens of a run, T positions of a sequence, P places of the cache,
V vocabulary, H heads, D width of a head.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightfit.calib.architecture import architecture_of
from tightfit.calib.config import read_config
from tightfit.calib.decoder import Decoder
from tightfit.export.manifest import Parity
from tightfit.export.onnx.readback import read_input_scales, read_weights
from tightfit.runtimes.onnx.session import LoadedModel, SessionOptions, failures_of, load_model
from tightfit.verify.comparison import LogitComparison, token_sequences

PROMPT_TOKENS = (48, 31, 17, 5)
"""Lengths in the batch: each has padding of its own, and the longest none."""
DECODE_TOKENS = 32
"""Tokens of each sequence that are read one at a time."""
FLOAT32_LIMIT = 1e-4
"""Largest relative maximum of a float32 graph: the order of sums measures 1e-6 to 2e-5, two
exchanged tensors of one block 0.05 and more."""
FLOAT16_LIMIT = 5e-3
"""The same of a float16 graph, whose every step rounds by up to 2**-11: 2 blocks measure 0.001,
SmolLM2's 30 blocks 0.0043."""
_BLOCKS_AT_LIMIT = 16
"""Beyond so many blocks the float16 limit grows with their square root, as noise adds."""
STATIC_FLOAT8_PER_BLOCK = 0.05
"""The same where activations are rounded to FP8, times the square root of the blocks. What differs
in the last bit before such a rounding may fall on the other side of a boundary, and then differs by
2**-3: float16 graphs measure 0.02 a block."""


def measure_onnx_parity(folder: Path, onnx_file: Path) -> Parity:
    """Logits of both on the same token ids; `folder` has the configuration and the tokenizer.

    Raises `ArtifactError` for a damaged file, `MissingPackageError` without onnxruntime, and
    `RuntimeFailureError` when onnxruntime refuses the file.
    """
    sequences = _sequences(token_sequences(folder))
    model = load_model(onnx_file, SessionOptions(exact=True))
    with failures_of(onnx_file):
        actual = _logits(model, sequences)
    comparison = LogitComparison()
    references = _reference(folder, onnx_file, sequences)
    for reference_TV, actual_TV in zip(references, actual, strict=True):
        comparison.add(reference_TV.numpy(), actual_TV)
    return comparison.result(
        f"onnxruntime {model.version}", passed=comparison.relative_maximum <= _limit(model)
    )


def _limit(model: LoadedModel) -> float:
    n_blocks = len({tensor.past.split(".")[1] for tensor in model.cache})
    if model.facts.quantized_inputs:
        return STATIC_FLOAT8_PER_BLOCK * math.sqrt(n_blocks)
    if model.cache[0].dtype is np.float16:
        return FLOAT16_LIMIT * math.sqrt(max(1, n_blocks / _BLOCKS_AT_LIMIT))
    return FLOAT32_LIMIT


def _sequences(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """One sequence per prompt length, cut one after the other from the texts."""
    stream = [token for text in texts for token in text]
    lengths = [prompt + DECODE_TOKENS for prompt in PROMPT_TOKENS]
    stream *= -(-sum(lengths) // len(stream))
    ends = np.cumsum(lengths)
    return [stream[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _logits(model: LoadedModel, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    """float32 (T, V) of each sequence: its prompt in one run, then a token a run."""
    n_rows, longest = len(sequences), max(PROMPT_TOKENS)
    mask_BP = (np.arange(longest) < np.array(PROMPT_TOKENS)[:, None]).astype(np.int64)
    ids_BS = np.zeros((n_rows, longest), dtype=np.int64)
    for row, (ids, length) in enumerate(zip(sequences, PROMPT_TOKENS, strict=True)):
        ids_BS[row, :length] = ids[:length]
    caches = {
        tensor.past: np.zeros((n_rows, tensor.heads, 0, tensor.width), tensor.dtype)
        for tensor in model.cache
    }
    logits_BSV, caches = _run(model, ids_BS, mask_BP, caches)
    parts = [[logits_BSV[row, :length]] for row, length in enumerate(PROMPT_TOKENS)]
    for step in range(DECODE_TOKENS):
        ids_BS = np.array(
            [[ids[length + step]] for ids, length in zip(sequences, PROMPT_TOKENS, strict=True)]
        )
        mask_BP = np.concatenate([mask_BP, np.ones_like(ids_BS)], axis=1)
        logits_BSV, caches = _run(model, ids_BS, mask_BP, caches)
        for row, part in enumerate(parts):
            part.append(logits_BSV[row])
    return [np.concatenate(part).astype(np.float32) for part in parts]


def _run(
    model: LoadedModel,
    ids_BS: NDArray[np.int64],
    mask_BP: NDArray[np.int64],
    caches: dict[str, NDArray[Any]],
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Logits (B, S, V), and the caches (B, H, P, D) that go into the next run."""
    feed = {"input_ids": ids_BS, "attention_mask": mask_BP, **caches}
    if model.has_positions:
        # Padding has a position too; nothing attends to it.
        feed["position_ids"] = (mask_BP.cumsum(axis=1) - 1)[:, -ids_BS.shape[1] :]
    names = ["logits", *(tensor.present for tensor in model.cache)]
    logits_BSV, *presents = model.session.run(names, feed)
    pasts = (tensor.past for tensor in model.cache)
    return logits_BSV, dict(zip(pasts, presents, strict=True))


def _reference(
    folder: Path, onnx_file: Path, sequences: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """Transformers on the weights that onnxruntime dequantizes from the file."""
    architecture = architecture_of(read_config(folder).text("model_type"))
    stored = {weight.name: weight for weight in read_weights(onnx_file)}

    def load(name: str) -> Tensor:
        # A tied head is the embedding.
        return torch.from_numpy(stored.get(name, stored[architecture.embedding]).values())

    decoder = Decoder(folder, architecture, torch.device("cpu"))
    return decoder.logits(sequences, load, read_input_scales(onnx_file))
