"""Transformers.js' file names, against its own table, and the section of config.json."""

import json

import pytest

from tightfit.errors import UsageError
from tightfit.export.onnx.naming import OnnxLayout, add_transformers_js_config, onnx_names
from tightfit.export.onnx.options import Precision

F32, F16 = Precision.FLOAT32, Precision.FLOAT16


def test_genai_has_one_name_for_all():
    for scheme in ("gptq-int4-g128", "fp8", "f16"):
        assert onnx_names(scheme, F16, OnnxLayout.GENAI) == ("model.onnx", "model.onnx.data")


@pytest.mark.parametrize(
    ("scheme", "precision", "name"),
    [
        ("f32", F32, "model.onnx"),
        ("f16", F16, "model_fp16.onnx"),
        ("f16", F32, "model.onnx"),
        ("gptq-int8-g128", F32, "model_quantized.onnx"),
        ("int8-channel-asym", F16, "model_quantized.onnx"),
        ("awq-gptq-int4-g32-asym", F32, "model_q4.onnx"),
        ("gptq-int4-g128", F16, "model_q4f16.onnx"),
        ("rtn-int2-g32", F32, "model_q2.onnx"),
        ("int2-g32", F16, "model_q2f16.onnx"),
    ],
)
def test_transformers_js_names(scheme, precision, name):
    """From DEFAULT_DTYPE_SUFFIX_MAPPING and getExternalDataChunkNames of version 4.3.1."""
    assert onnx_names(scheme, precision, OnnxLayout.TRANSFORMERS_JS) == (name, f"{name}_data")


@pytest.mark.parametrize("scheme", ["fp8", "int3-g128", "fp8-block128-static"])
def test_schemes_without_a_name_are_refused(scheme):
    with pytest.raises(UsageError, match=f"no file name for the scheme {scheme}"):
        onnx_names(scheme, F16, OnnxLayout.TRANSFORMERS_JS)


def test_config_json_tells_the_data_file_and_keeps_the_rest(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "text": "<｜User｜>"}')
    add_transformers_js_config(tmp_path, "gptq-int4-g128", F16)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "model_type": "qwen2",
        "text": "<｜User｜>",
        "transformers.js_config": {
            "dtype": "q4f16",
            "use_external_data_format": {"model_q4f16.onnx": 1},
            "kv_cache_dtype": {"q4f16": "float16"},
        },
    }
