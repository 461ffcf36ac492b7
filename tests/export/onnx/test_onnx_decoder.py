"""Whole decoders in onnxruntime against transformers on the dequantized weights.

Every case runs a right-padded batch of unequal lengths and 32 decoding steps with its cache, in
both dialects and both precisions, and every file passes onnx.checker with full shape inference.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.checkpoints import make_checkpoint
from support.onnx_models import (
    OnnxDecoder,
    difference_on,
    expected_logits,
    reference_model,
    relative_difference,
    rtn_weights,
    write_model,
)
from support.smollm2 import smollm2_checkpoint
from support.tiny_r1 import TINY_R1
from tokenizers import Tokenizer

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.errors import QuantizationError
from tightfit.export.onnx.decoder import build_graph
from tightfit.export.onnx.options import Dialect, OnnxOptions, Precision

TOLERANCE = {Precision.FLOAT32: 1e-4, Precision.FLOAT16: 5e-3}
LIVELY = {"initializer_range": 0.08}
"""Four times transformers' default: attention then matters enough that a mistake in it shows."""
TEXT = """<|im_start|>user
Explain in a few sentences why the sky is blue, and why sunsets are red.<|im_end|>
<|im_start|>assistant
Sunlight is scattered by the molecules of the air, and blue light is scattered much more than red.
In the evening the light has a longer way through the air, so that little of the blue is left.
"""
GRAPHS = [
    OnnxOptions(dialect=dialect, precision=precision)
    for dialect in Dialect
    for precision in Precision
]


@pytest.mark.parametrize(
    ("family", "config", "storage"),
    [
        ("qwen2", {}, {"linears": "int4-g32-sym", "head": "int8-g32-asym"}),
        ("qwen2", {"tie": True}, {"linears": "int8-g64-asym", "embedding": "int4-g32-sym"}),
        ("qwen3", {}, {"linears": "int4-g32-asym", "embedding": "float16", "act_order": True}),
        ("qwen3", {"rope": "yarn", "tie": True}, {"linears": "fp8-e4m3-channel"}),
        ("llama", {"attention_bias": True}, {"linears": "int8-channel-sym"}),
        ("llama", {"rope": "llama3"}, {"linears": "float16", "head": "int4-g64-sym"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_logits_are_those_of_transformers(tmp_path, family, config, storage):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", family, **config, **LIVELY))
    weights = rtn_weights(checkpoint, **storage)
    reference = reference_model(checkpoint, weights)
    for options in GRAPHS:
        path = write_model(tmp_path, checkpoint, weights, options)
        assert relative_difference(path, reference) < TOLERANCE[options.precision], options


@pytest.mark.parametrize("options", GRAPHS, ids=lambda o: f"{o.dialect.value}-{o.precision.value}")
def test_tiny_r1(tmp_path, options):
    checkpoint = open_checkpoint(TINY_R1)
    weights = rtn_weights(checkpoint, "int4-g32-sym", embedding="int8-g32-sym")
    path = write_model(tmp_path, checkpoint, weights, options)
    difference = relative_difference(path, reference_model(checkpoint, weights))
    assert difference < TOLERANCE[options.precision]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """Int4 weights of a real model, its reference, and the tokens of a text."""
    path = smollm2_checkpoint(tmp_path_factory.mktemp("smollm2") / "model")
    checkpoint = open_checkpoint(path)
    weights = rtn_weights(checkpoint, "int4-g64-sym", embedding="int8-g64-sym")
    tokens = np.array(Tokenizer.from_file(str(path / "tokenizer.json")).encode(TEXT).ids)
    return checkpoint, weights, reference_model(checkpoint, weights), tokens


@pytest.mark.slow
@pytest.mark.parametrize("options", GRAPHS, ids=lambda o: f"{o.dialect.value}-{o.precision.value}")
def test_a_real_model(tmp_path, options, smollm2):
    checkpoint, weights, reference, tokens = smollm2
    path = write_model(tmp_path, checkpoint, weights, options)
    prompts = [tokens[:20], tokens[:12]]
    following = np.stack([tokens[20:52], tokens[12:44]])
    difference = difference_on(path, reference, prompts, following)
    assert difference < TOLERANCE[options.precision]


@pytest.mark.parametrize("dialect", Dialect)
def test_tokens_may_come_several_at_a_time(tmp_path, dialect):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", "qwen2", **LIVELY))
    weights = rtn_weights(checkpoint, "int4-g32-sym")
    path = write_model(tmp_path, checkpoint, weights, OnnxOptions(dialect=dialect))
    reference = reference_model(checkpoint, weights)
    difference = relative_difference(path, reference, prompt_lengths=(9,), n_steps=21, chunk=7)
    assert difference < TOLERANCE[Precision.FLOAT32]


def test_the_standard_dialect_allows_padding_on_the_left(tmp_path):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", "llama", **LIVELY))
    weights = rtn_weights(checkpoint, "int4-g32-sym")
    options = OnnxOptions(dialect=Dialect.STANDARD)
    decoder = OnnxDecoder(write_model(tmp_path, checkpoint, weights, options))
    ids = np.random.default_rng(0).integers(0, 512, (1, 12))
    mask = np.array([[0] * 4 + [1] * 8])
    position = np.maximum(mask.cumsum(axis=1) - 1, 0)
    logits, _ = decoder.step(ids, mask, position, decoder.empty_cache(1))
    expected = expected_logits(reference_model(checkpoint, weights), ids[0, 4:])
    assert np.isfinite(logits).all()
    assert np.abs(logits[0, 4:] - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("qwen3") / "model", "qwen3"))


def _load(folder: Path, checkpoint, dialect: Dialect) -> onnx.ModelProto:
    weights = rtn_weights(checkpoint, "int4-g32-sym")
    path = write_model(folder, checkpoint, weights, OnnxOptions(dialect=dialect))
    return onnx.load(path, load_external_data=False)


def test_the_standard_dialect_has_standard_operators_only(tmp_path, qwen3):
    model = _load(tmp_path, qwen3, Dialect.STANDARD)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 23)]
    assert {node.domain for node in model.graph.node} == {""}
    # TensorRT parses Attention with one output only.
    attention = [node for node in model.graph.node if node.op_type == "Attention"]
    assert [len(node.output) for node in attention] == [1, 1]


def test_the_ort_dialect_uses_the_fused_operators(tmp_path, qwen3):
    operators = [node.op_type for node in _load(tmp_path, qwen3, Dialect.ORT).graph.node]
    assert operators.count("MatMulNBits") == 2 * 7
    assert operators.count("GroupQueryAttention") == 2
    assert operators.count("SkipSimplifiedLayerNormalization") == 2 * 2
    assert not {"DequantizeLinear", "Attention", "RotaryEmbedding"} & set(operators)


@pytest.mark.parametrize("dialect", Dialect)
def test_inputs_and_outputs(tmp_path, qwen3, dialect):
    graph = _load(tmp_path, qwen3, dialect).graph
    past, present = (
        [f"{name}.{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
        for name in ("past_key_values", "present")
    )
    positions = ["position_ids"] if dialect is Dialect.STANDARD else []
    assert [value.name for value in graph.input] == [
        "input_ids",
        "attention_mask",
        *positions,
        *past,
    ]
    assert [value.name for value in graph.output] == ["logits", *present]


def test_every_intermediate_value_has_a_type_and_shape(tmp_path, qwen3):
    model = _load(tmp_path, qwen3, Dialect.ORT)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    known = {
        value.name: value.type.tensor_type
        for values in (inferred.value_info, inferred.output)
        for value in values
    }
    for node in inferred.node:
        for name in filter(None, node.output):
            assert known[name].elem_type, name
            assert known[name].HasField("shape"), name


def test_nothing_is_loaded_to_build_the_graph(qwen3):
    def fail():
        raise AssertionError

    weights = rtn_weights(qwen3, "int4-g32-asym", embedding="int8-g32-sym", act_order=True)
    lazy = {name: replace(weight, load=fail) for name, weight in weights.items()}
    for options in GRAPHS:
        graph = build_graph(qwen3.dimensions, qwen3.architecture, lazy, options)
        assert graph.data_bytes > 0


def test_a_grid_that_a_dialect_cannot_hold_is_refused(qwen3):
    weights = rtn_weights(qwen3, "int3-g32-sym")
    for dialect in Dialect:
        with pytest.raises(QuantizationError, match="int3-g32-sym"):
            build_graph(qwen3.dimensions, qwen3.architecture, weights, OnnxOptions(dialect=dialect))
