"""`golden.safetensors`: inputs and the logits that an engine must give for them.

The engine is built where no GPU is; whoever has the card runs these inputs through it and compares.
The file holds one batch of unequal lengths. Prompts are padded on the right, S columns; N more
columns are the tokens that follow, the same for every runtime whatever it would have chosen:

    input_ids       int64   (B, S + N)
    attention_mask  int64   (B, S + N)      1 = a token, 0 = padding
    position_ids    int64   (B, S + N)      counts tokens only, so answers go on after the prompt
    logits          float32 (B, S + N, V)   column t predicts the token after column t

with S as `prompt_tokens` and "tightfit-golden" as `format` in the metadata. The first S columns are
given at once, then one at a time with the cache: both optimization profiles run.

Shape legend: B batch, T = S + N columns, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tightfit.errors import ArtifactError
from tightfit.files import whole_file

_FORMAT = "tightfit-golden"
_DTYPES = {
    "input_ids": np.int64,
    "attention_mask": np.int64,
    "position_ids": np.int64,
    "logits": np.float32,
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """What a decoder is given: a prefill of all prompts, then forced tokens."""

    input_ids_BT: NDArray[np.int64]
    attention_mask_BT: NDArray[np.int64]
    position_ids_BT: NDArray[np.int64]
    prompt_tokens: int
    """S: columns of the prefill."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Golden:
    """A batch, and what must come out."""

    batch: Batch
    logits_BTV: NDArray[np.float32]


def lay_out(sequences: Sequence[Sequence[int]], *, decode_tokens: int) -> Batch:
    """A batch of token sequences whose last `decode_tokens` are given one at a time."""
    lengths = [len(sequence) - decode_tokens for sequence in sequences]
    assert min(lengths) > 0, "every prompt needs a token"
    prompt_tokens = max(lengths)
    shape = (len(sequences), prompt_tokens + decode_tokens)
    ids_BT, mask_BT = np.zeros(shape, np.int64), np.ones(shape, np.int64)
    for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        ids_BT[row, :length] = sequence[:length]
        ids_BT[row, prompt_tokens:] = sequence[length:]
        mask_BT[row, length:prompt_tokens] = 0
    return Batch(
        input_ids_BT=ids_BT,
        attention_mask_BT=mask_BT,
        position_ids_BT=np.maximum(mask_BT.cumsum(axis=1) - 1, 0),
        prompt_tokens=prompt_tokens,
    )


def relative_difference(golden: Golden, logits_BTV: NDArray[np.float32]) -> float:
    """Root mean square of the difference over that of the golden logits, of real tokens only.

    Each position's mean is taken off first, which softmax does not see. NaN where `logits_BTV`
    has a NaN.
    """
    real_BT = golden.batch.attention_mask_BT.astype(bool)
    wanted_NV, found_NV = golden.logits_BTV[real_BT], logits_BTV[real_BT]
    return _spread(found_NV - wanted_NV) / _spread(wanted_NV)


def write_golden(path: Path, golden: Golden) -> None:
    """Write the file; raises `ArtifactError` when the disk is full."""
    tensors = {
        "input_ids": golden.batch.input_ids_BT,
        "attention_mask": golden.batch.attention_mask_BT,
        "position_ids": golden.batch.position_ids_BT,
        "logits": golden.logits_BTV,
    }
    metadata = {"format": _FORMAT, "prompt_tokens": str(golden.batch.prompt_tokens)}
    with whole_file(path) as part:
        save_file({name: np.ascontiguousarray(tensors[name]) for name in tensors}, part, metadata)


def read_golden(path: Path) -> Golden:
    """Read and check the file; raises `ArtifactError` when it is absent or damaged."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in _DTYPES}
            prompt_tokens = int(metadata.get("prompt_tokens", "0"))
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if metadata.get("format") != _FORMAT:
        raise _damaged(path, f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
    shape = tensors["input_ids"].shape
    for name, tensor in tensors.items():
        if tensor.dtype != _DTYPES[name] or tensor.shape[:2] != shape:
            raise _damaged(path, f"{name} is {tensor.dtype} {tensor.shape}")
    if len(shape) != 2 or tensors["logits"].ndim != 3 or not 0 < prompt_tokens <= shape[1]:
        raise _damaged(path, f"{prompt_tokens} prompt tokens and inputs of shape {shape}")
    return Golden(
        batch=Batch(
            input_ids_BT=tensors["input_ids"],
            attention_mask_BT=tensors["attention_mask"],
            position_ids_BT=tensors["position_ids"],
            prompt_tokens=prompt_tokens,
        ),
        logits_BTV=tensors["logits"],
    )


def _spread(logits_NV: NDArray[np.float32]) -> float:
    wide_NV = logits_NV.astype(np.float64)
    centred_NV = wide_NV - wide_NV.mean(axis=1, keepdims=True)
    return float(np.sqrt(np.square(centred_NV).mean()))


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is not a whole golden file: {reason}",
        hint="copy it again with its engine, or export again",
    )
