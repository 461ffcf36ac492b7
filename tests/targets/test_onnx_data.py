"""Predicted sizes of data files against graphs that are really built, and against arithmetic."""

from dataclasses import replace

import pytest
import torch

from tightfit.calib.architecture import architecture_of
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.models import find_model
from tightfit.calib.shapes import tensor_shapes
from tightfit.export.onnx.decoder import build_graph
from tightfit.export.onnx.graph import OnnxGraph
from tightfit.export.onnx.options import Dialect, OnnxOptions, Precision
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight
from tightfit.quant.tensor import QuantizedTensor
from tightfit.targets.onnx_data import GraphKind, data_bytes, weight_sizes
from tightfit.targets.plan import make_plan
from tightfit.targets.profile import load_target

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ALIGNMENT = 0.001
"""Only the order of tensors may make a difference; 0.02 is promised."""


def known(name: str) -> ModelDimensions:
    model = find_model(name)
    assert model
    return model.dimensions


def graph_of(
    dimensions: ModelDimensions, storage: dict[str, str], options: OnnxOptions
) -> OnnxGraph:
    """The real graph; it asks for no weight but, of quantized ones, for their act-order."""

    def weight(name: str, shape: tuple[int, ...]) -> Weight:
        stored_as = storage[name]
        if stored_as in TORCH:
            return FloatWeight(shape=shape, dtype=TORCH[stored_as], load=never)
        rows, columns = shape
        unordered = QuantizedTensor(
            grid=stored_as, shape=(rows, columns), codes_OI=torch.empty(0), params={}
        )
        return QuantizedWeight(shape=(rows, columns), grid=stored_as, load=lambda: unordered)

    architecture = architecture_of(dimensions.model_type)
    shapes = tensor_shapes(architecture, dimensions)
    weights = {name: weight(name, shape) for name, shape in shapes.items()}
    return build_graph(dimensions, architecture, weights, options)


def never() -> torch.Tensor:
    raise AssertionError("a plan loads nothing")


@pytest.mark.parametrize(
    ("model", "format_", "target", "scheme", "embedding"),
    [
        ("r1-distill-qwen-1.5b", "onnx", "rtx3060-8gb", "gptq-int4-g128", None),
        ("r1-distill-qwen-1.5b", "onnx", "rtx3060-8gb", "int4-g32-asym", "int8-g32"),
        ("r1-distill-qwen-1.5b", "onnx", "cpu-16gb", "int8-g64", None),
        ("r1-distill-qwen-1.5b", "onnx", "cpu-16gb", "bf16", None),
        ("r1-distill-qwen-1.5b", "onnx", "rtx4090-24gb", "fp8-block128", None),
        ("r1-distill-llama-8b", "onnx", "rtx3060-12gb", "int2-g32", None),
        ("r1-0528-qwen3-8b", "onnx", "rtx3060-12gb", "f16", None),
        ("r1-distill-qwen-1.5b", "tensorrt", "rtx3060-8gb", "int4-g128", "int8-channel"),
        ("r1-0528-qwen3-8b", "tensorrt", "rtx4090-24gb", "fp8-tensor", None),
        ("r1-distill-llama-8b", "tensorrt", "rtx3060-8gb", "int4-g64", None),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_prediction_is_the_files_size(
    model: str, format_: str, target: str, scheme: str, embedding: str | None, tied: bool
) -> None:
    dimensions = replace(known(model), tie_word_embeddings=tied)
    # A larger machine of the same kind, so that everything fits.
    machine = replace(load_target(target), memory_gib=100.0)
    plan = make_plan(
        dimensions, machine, model=model, format=format_, scheme=scheme, embedding=embedding
    )
    assert plan.precision is not None
    options = OnnxOptions(
        dialect=Dialect.ORT if format_ == "onnx" else Dialect.STANDARD,
        precision=Precision(plan.precision),
    )
    written = graph_of(dimensions, dict(plan.storage), options).data_bytes
    assert plan.chosen.file_bytes == pytest.approx(written, rel=ALIGNMENT)


def test_1_5b_by_hand() -> None:
    """28 layers, hidden 1536, MLP 8960, 12 heads and 2 kv heads of 128, 151,936 tokens."""
    linears = 28 * (2 * 1536 * 1536 + 2 * 256 * 1536 + 3 * 1536 * 8960) + 151936 * 1536
    codes = linears // 2
    scales = 2 * linears // 128
    table = 2 * 151936 * 1536
    vectors = 2 * (28 * (2 * 1536 + 1536 + 2 * 256) + 1536)
    made = make_plan(
        known("r1-distill-qwen-1.5b"),
        load_target("rtx3060-8gb"),
        model="1.5b",
        format="onnx",
        scheme="gptq-int4-g128",
    )
    total = codes + scales + table + vectors
    # 197 matrices and their scales begin at a page at the latest.
    assert total <= made.chosen.file_bytes < total + 4096 * 2 * 197
    assert made.chosen.bits_per_weight == pytest.approx(
        8 * total / (linears + table // 2 + vectors // 2)
    )
    assert made.chosen.memory.weights_bytes == total
    # The head alone would take 350 MB more as float16.
    heavy = make_plan(
        known("r1-distill-qwen-1.5b"),
        load_target("rtx3060-8gb"),
        model="1.5b",
        format="onnx",
        scheme="gptq-int4-g128",
        head="f16",
    )
    extra = 151936 * 1536 * (2 - 0.5 - 2 / 128)
    assert heavy.chosen.memory.weights_bytes - made.chosen.memory.weights_bytes == extra


def test_a_gguf_of_one_grid_by_hand() -> None:
    """Q4_0 takes 18 bytes for 32 weights whatever the group; vectors are F32."""
    linears = 28 * (2 * 1536 * 1536 + 2 * 256 * 1536 + 3 * 1536 * 8960) + 151936 * 1536
    vectors = 28 * (2 * 1536 + 1536 + 2 * 256) + 1536
    expected = linears * 18 // 32 + 2 * 151936 * 1536 + 4 * vectors
    made = make_plan(
        known("r1-distill-qwen-1.5b"),
        load_target("cpu-16gb"),
        model="1.5b",
        scheme="gptq-int4-g128",
    )
    assert made.chosen.memory.weights_bytes == expected
    assert expected <= made.chosen.file_bytes < expected + 32 * 500


def test_zero_points_by_hand() -> None:
    """int4 asymmetric, 3 rows of 5 groups: a row of MatMulNBits ends on a whole byte."""
    shape = (3, 5 * 32)
    own = GraphKind(precision="float16", own_operators=True)
    standard = replace(own, own_operators=False)
    assert weight_sizes("int4-g32-asym", shape, own) == [240, 30, 3 * 3]
    assert weight_sizes("int4-g32-asym", shape, standard) == [240, 30, 8]
    assert weight_sizes("int4-channel-asym", shape, own) == [240, 6, 2]
    assert weight_sizes("int4-g32-sym", shape, replace(own, precision="float32")) == [240, 60]


def test_tensors_are_aligned() -> None:
    assert data_bytes([10, 10]) == 64 + 10
    assert data_bytes([10, 1 << 20]) == 4096 + (1 << 20)
