"""ggml's own quantizers through ctypes, as the oracle of the grid tests."""

import ctypes
from functools import cache
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray


@cache
def _library() -> ctypes.CDLL:
    import libggml

    folder = Path(libggml.__file__).parent / "lib64"
    library = ctypes.CDLL(str(folder / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return library


def quantize(
    name: str, w_OI: NDArray[np.float32], importance_I: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """Bytes (O, row bytes) of `ggml_quantize_chunk`."""
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = w_OI.shape
    w_OI = np.ascontiguousarray(w_OI, dtype=np.float32)
    out = np.zeros((rows, columns // block * size), dtype=np.uint8)
    weights = None
    if importance_I is not None:
        importance_I = np.ascontiguousarray(importance_I, dtype=np.float32)
        weights = importance_I.ctypes.data
    written = _library().ggml_quantize_chunk(
        int(kind), w_OI.ctypes.data, out.ctypes.data, 0, rows, columns, weights
    )
    assert written == out.size
    return out


def dequantize(name: str, data: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.float32]:
    """What ggml's own `dequantize_row_*` makes of the bytes."""
    row_function = getattr(_library(), f"dequantize_row_{name.lower().replace('_k', '_K')}")
    row_function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    row_function.restype = None
    data = np.ascontiguousarray(data)
    out = np.empty(shape, dtype=np.float32)
    row_function(data.ctypes.data, out.ctypes.data, out.size)
    return out
