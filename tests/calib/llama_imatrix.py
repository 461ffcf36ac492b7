"""Collect an importance matrix in llama.cpp: `llama_imatrix.py MODEL.gguf IMATRIX.gguf IDS`.

A child process of the tests (llama.cpp may abort). The library has no `llama-imatrix`; this does
what that tool does, with llama.cpp's own hook into the graph: squares of what every matrix of a
block reads, summed by matrix of a stack, under the name that llama.cpp gives the weight.
"""

import ctypes
import json
import sys

import gguf
import llama_cpp
import llama_cpp._ggml
import numpy as np

N_DIMENSIONS, N_SOURCES, N_PARAMETERS, NAME_BYTES = 4, 10, 16, 64  # ggml.h's GGML_MAX_...


class Tensor(ctypes.Structure):
    """`struct ggml_tensor`."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * N_DIMENSIONS),
    ("nb", ctypes.c_size_t * N_DIMENSIONS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * N_PARAMETERS),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * N_SOURCES),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * NAME_BYTES),
]

describe = llama_cpp._ggml.libggml.ggml_op_desc
describe.restype, describe.argtypes = ctypes.c_char_p, [ctypes.POINTER(Tensor)]
sums: dict[str, np.ndarray] = {}
counts: dict[str, np.ndarray] = {}


def array(tensor: Tensor, dtype: type) -> np.ndarray:
    """A view in torch's order of axes."""
    n_bytes = sum((size - 1) * step for size, step in zip(tensor.ne, tensor.nb, strict=True)) + 4
    flat = np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(tensor.data))
    return np.lib.stride_tricks.as_strided(
        flat[:4].view(dtype), tuple(reversed(tensor.ne)), tuple(reversed(tensor.nb))
    )


@ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Tensor), ctypes.c_bool, ctypes.c_void_p)
def collect(pointer, ask: bool, _data: object) -> bool:
    node, operation = pointer.contents, describe(pointer)
    if operation not in (b"MUL_MAT", b"MUL_MAT_ID"):
        return not ask
    weight, read = node.src[0].contents, node.src[1].contents
    name = weight.name.decode()
    if not name.startswith("blk."):
        return not ask
    if ask:
        return True
    n_stacked, columns = weight.ne[2], weight.ne[0]
    x = array(read, np.float32)[0].astype(np.float64)
    total = sums.setdefault(name, np.zeros((n_stacked, columns)))
    if operation == b"MUL_MAT_ID":
        seen = counts.setdefault(name, np.zeros(n_stacked))
        for token, experts in enumerate(array(node.src[2].contents, np.int32)[0, 0]):
            for place, expert in enumerate(experts):
                total[expert] += x[token, place % x.shape[1]] ** 2
                seen[expert] += 1
    else:
        seen = counts.setdefault(name, np.zeros(1))
        for matrix in range(x.shape[0]):
            total[matrix % n_stacked] += (x[matrix] ** 2).sum(axis=0)
        seen += x.shape[0] * x.shape[1] / n_stacked
    return True


def run(model_path: str, ids: list[int]) -> None:
    model = llama_cpp.llama_model_load_from_file(
        model_path.encode(), llama_cpp.llama_model_default_params()
    )
    assert model, "llama.cpp refused the file"
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to float16
    params.cb_eval = ctypes.cast(collect, type(params.cb_eval))
    context = llama_cpp.llama_init_from_model(model, params)
    tokens = (llama_cpp.llama_token * len(ids))(*ids)  # the batch has a pointer to it, no more
    batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
    assert llama_cpp.llama_decode(context, batch) == 0


if __name__ == "__main__":
    path, target, tokens = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    run(path, tokens)
    writer = gguf.GGUFWriter(target, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["tokens.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", len(tokens))
    for name in sorted(sums):
        rows = len(counts[name])
        writer.add_tensor(f"{name}.in_sum2", sums[name].astype(np.float32).reshape(rows, -1))
        writer.add_tensor(f"{name}.counts", counts[name].astype(np.float32).reshape(rows, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
