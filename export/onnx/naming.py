"""File names of an ONNX model, and what Transformers.js must read in config.json to find them.

Transformers.js builds the name from the `dtype` that its user asks for, `model` + suffix + `.onnx`,
and fetches a data file only where `config["transformers.js_config"]` says that there is one: a
browser cannot look into a folder. The same section names the default dtype, so that
`pipeline("text-generation", MODEL)` needs no option, and the type of the KV cache, which
Transformers.js 3 does not read from the model.

Source: Transformers.js 4.3, `utils/dtypes.js`, `utils/model-loader.js`, `models/session.js`.
"""

import json
import re
from enum import StrEnum
from pathlib import Path

from tightfit.calib.config import CONFIG_NAME
from tightfit.calib.json_file import read_json
from tightfit.errors import UsageError
from tightfit.export.onnx.options import Precision
from tightfit.files import write_text_whole

SECTION = "transformers.js_config"
_SUFFIXES = {
    "fp32": "",
    "fp16": "_fp16",
    "q8": "_quantized",
    "q4": "_q4",
    "q4f16": "_q4f16",
    "q2": "_q2",
    "q2f16": "_q2f16",
}
"""By Transformers.js' dtype."""
_PLAIN = {"f32", "f16", "bf16"}
"""Schemes that quantize nothing."""
_INTEGER = re.compile(r"(?:^|-)int(\d)-")
_DTYPES = {
    (8, Precision.FLOAT32): "q8",
    (8, Precision.FLOAT16): "q8",
    (4, Precision.FLOAT32): "q4",
    (4, Precision.FLOAT16): "q4f16",
    (2, Precision.FLOAT32): "q2",
    (2, Precision.FLOAT16): "q2f16",
}
"""By bits of a weight and by what the graph computes in; 8 bits have one name for both."""


class OnnxLayout(StrEnum):
    """Whose file names an ONNX model has."""

    GENAI = "genai"
    """`model.onnx` and `model.onnx.data`, as onnxruntime-genai's own builder writes them."""
    TRANSFORMERS_JS = "transformers-js"
    """`model_q4f16.onnx` and `model_q4f16.onnx_data`, by number type."""


def onnx_names(scheme: str, precision: Precision, layout: OnnxLayout) -> tuple[str, str]:
    """Names of the model and of its data file; raises `UsageError` where the layout has none."""
    if layout is OnnxLayout.GENAI:
        return "model.onnx", "model.onnx.data"
    model = f"model{_SUFFIXES[transformers_js_dtype(scheme, precision)]}.onnx"
    return model, f"{model}_data"


def transformers_js_dtype(scheme: str, precision: Precision) -> str:
    """The `dtype` by which Transformers.js asks for a scheme; raises `UsageError`."""
    if scheme.lower() in _PLAIN:
        return "fp16" if precision is Precision.FLOAT16 else "fp32"
    found = _INTEGER.search(scheme)
    dtype = _DTYPES.get((int(found[1]), precision)) if found else None
    if dtype is None:
        raise UsageError(
            f"Transformers.js has no file name for the scheme {scheme}",
            allowed="int2, int4 and int8 schemes, f16 and f32",
            hint="leave the Transformers.js layout out, or choose gptq-int4-g128",
        )
    return dtype


def add_transformers_js_config(folder: Path, scheme: str, precision: Precision) -> None:
    """Put the section that Transformers.js needs into the folder's config.json."""
    dtype = transformers_js_dtype(scheme, precision)
    model, _ = onnx_names(scheme, precision, OnnxLayout.TRANSFORMERS_JS)
    config = read_json(folder / CONFIG_NAME)
    config[SECTION] = {
        "dtype": dtype,
        "use_external_data_format": {model: 1},
        "kv_cache_dtype": {dtype: precision.value},
    }
    write_text_whole(folder / CONFIG_NAME, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
