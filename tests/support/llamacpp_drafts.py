"""Logits of a multi-token-prediction layer in llama.cpp, which drafts with it.

`draft_logits` runs this file as a child process, as llama.cpp aborts on what it does not like.

Shape legend: T positions, D hidden width, V vocabulary.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
from ctypes import POINTER, c_float, c_int8, c_int32
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tightfit.runtimes.llamacpp.binding import Batch, load_library
from tightfit.runtimes.llamacpp.client import CHILD_ENVIRONMENT

_DRAFTING = 1
"""`LLAMA_CONTEXT_TYPE_MTP`."""
_F32 = 0
"""`GGML_TYPE_F32`, of the cache."""
_CONTEXT_TOKENS = 256
_TIMEOUT_S = 60


def draft_logits(
    gguf: Path, ids_T: NDArray[np.int32], hidden_TD: NDArray[np.float32], vocab_size: int
) -> NDArray[np.float32]:
    """float32 (T, V): what the layer predicts after tokens, and hidden states of the model."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.npz", Path(folder) / "made.npy"
        np.savez(given, ids=ids_T, hidden=hidden_TD)
        child = subprocess.run(
            [sys.executable, __file__, str(gguf), str(given), str(made), str(vocab_size)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env=os.environ | CHILD_ENVIRONMENT,
            check=False,
        )
        assert child.returncode == 0, child.stderr[-2000:]
        return np.load(made)


def _draft(
    gguf: str, ids_T: NDArray[np.int32], hidden_TD: NDArray[np.float32], vocab_size: int
) -> NDArray[np.float32]:
    library = load_library()
    model_params = library.llama_model_default_params()
    model_params.load_mtp = True
    model = library.llama_model_load_from_file(gguf.encode(), model_params)
    assert model
    params = library.llama_context_default_params()
    params.n_ctx = _CONTEXT_TOKENS
    params.type_k = params.type_v = _F32
    target = library.llama_init_from_model(model, params)
    params.ctx_type = _DRAFTING
    params.ctx_other = target
    context = library.llama_init_from_model(model, params)
    assert context
    n_tokens = len(ids_T)
    positions, ones = np.arange(n_tokens, dtype=np.int32), np.ones(n_tokens, np.int32)
    wanted, sequence = np.ones(n_tokens, np.int8), ctypes.pointer(c_int32(0))
    batch = Batch(
        n_tokens=n_tokens,
        token=ids_T.ctypes.data_as(POINTER(c_int32)),
        embd=hidden_TD.ctypes.data_as(POINTER(c_float)),
        pos=positions.ctypes.data_as(POINTER(c_int32)),
        n_seq_id=ones.ctypes.data_as(POINTER(c_int32)),
        seq_id=(POINTER(c_int32) * n_tokens)(*[sequence] * n_tokens),
        logits=wanted.ctypes.data_as(POINTER(c_int8)),
    )
    assert library.llama_decode(context, batch) == 0
    logits = library.llama_get_logits(context)
    return np.ctypeslib.as_array(logits, (n_tokens, vocab_size)).copy()


if __name__ == "__main__":
    with np.load(sys.argv[2]) as inputs:
        np.save(sys.argv[3], _draft(sys.argv[1], inputs["ids"], inputs["hidden"], int(sys.argv[4])))
