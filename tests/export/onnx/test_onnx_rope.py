"""Frequencies against transformers' own, and the graph's angles against float64."""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from support.checkpoints import ROPES
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tightfit.calib.config import ModelConfig
from tightfit.calib.rope import RopeScaling, read_rope
from tightfit.export.onnx.graph import GraphBuilder
from tightfit.export.onnx.options import Precision
from tightfit.export.onnx.rope import inverse_frequencies, rotary_cos_sin

SECTIONS = {
    **{name: {"rope_theta": 10000.0, **section} for name, section in ROPES.items()},
    "yarn of R1": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    "yarn with its own factor": {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "attention_factor": 0.8782488562869419,
        "beta_fast": 16.0,
    },
    "llama3 of Llama 3.1": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def _read(section: dict[str, object]) -> tuple[float, RopeScaling | None]:
    values = {"max_position_embeddings": 131072, "rope_parameters": section}
    return read_rope(ModelConfig(origin="test", values=values))


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("width", [64, 128])
def test_frequencies_are_those_of_transformers(name, width):
    section = SECTIONS[name]
    config = LlamaConfig(
        hidden_size=4 * width,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters=dict(section),
    )
    expected, factor = ROPE_INIT_FUNCTIONS[str(section["rope_type"])](config, "cpu")
    theta, scaling = _read(section)
    assert scaling is not None
    np.testing.assert_allclose(inverse_frequencies(width, theta, scaling), expected, rtol=3e-6)
    assert scaling.yarn_attention_factor == pytest.approx(factor)


def test_unscaled_frequencies():
    assert inverse_frequencies(8, 10000.0, None) == pytest.approx([1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize(
    ("precision", "tolerance"), [(Precision.FLOAT32, 2e-6), (Precision.FLOAT16, 1e-3)]
)
def test_graph_computes_cos_and_sin_of_any_positions(precision, tolerance):
    theta, scaling = _read(SECTIONS["yarn of R1"])
    assert scaling is not None
    dimensions = SimpleNamespace(mla=None, head_dim=16, rope_theta=theta, rope_scaling=scaling)
    graph = GraphBuilder("test", data_file="unused")
    positions = graph.input("positions", ir.DataType.FLOAT, ("B", "S"))
    cos, sin = rotary_cos_sin(graph, positions, dimensions, precision, name="rope")
    dims = ("B", "S", 8)
    finished = graph.finish(
        [(cos, precision.data_type, dims), (sin, precision.data_type, dims)], producer="test"
    )
    session = onnxruntime.InferenceSession(ir.to_proto(finished.model).SerializeToString())
    position_BS = np.array([[0, 1, 7], [3, 100, 5]], dtype=np.float32)
    found = session.run(None, {"positions": position_BS})
    angle = position_BS[..., None] * inverse_frequencies(16, theta, scaling)
    for value, function in zip(found, (np.cos, np.sin), strict=True):
        expected = function(angle) * scaling.yarn_attention_factor
        np.testing.assert_allclose(value, expected, atol=8 * tolerance, rtol=tolerance)
