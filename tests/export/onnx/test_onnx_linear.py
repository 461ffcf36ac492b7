"""One linear in each storage form, in onnxruntime, against a product with the stored numbers."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.onnx_models import OnnxDecoder
from support.onnx_weights import floating, quantized

from tightfit.errors import QuantizationError
from tightfit.export.onnx.graph import GraphBuilder
from tightfit.export.onnx.linear import linear
from tightfit.export.onnx.options import Dialect, OnnxOptions, Precision
from tightfit.export.onnx.writer import write_onnx
from tightfit.export.weights import FloatWeight, Weight

SHAPE = (48, 256)
TOLERANCE = {Precision.FLOAT32: 2e-6, Precision.FLOAT16: 2e-3}
ORT, STANDARD = Dialect.ORT, Dialect.STANDARD
NAME = "layer.proj"


def _write(folder: Path, weight: Weight, options: OnnxOptions, bias: FloatWeight | None) -> Path:
    graph = GraphBuilder("test", data_file="linear.onnx.data")
    x = graph.input("x", options.precision.data_type, ("B", "S", SHAPE[1]))
    y = linear(graph, NAME, x, weight, bias, options)
    outputs = [(y, options.precision.data_type, ("B", "S", SHAPE[0]))]
    path = write_onnx(folder / "linear.onnx", graph.finish(outputs, producer="test"))[0]
    onnx.checker.check_model(str(path), full_check=True)
    return path


def _run(path: Path, x: np.ndarray) -> np.ndarray:
    return OnnxDecoder(path).session.run(None, {"x": x})[0].astype(np.float64)


def _operators(path: Path) -> list[str]:
    model = onnx.load(path, load_external_data=False)
    return [node.op_type for node in model.graph.node if node.op_type != "Cast"]


DEQUANTIZED = ["DequantizeLinear", "Transpose", "MatMul"]


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize(
    ("dialect", "weight", "operators"),
    [
        (ORT, quantized("int4-g32-sym", SHAPE), ["MatMulNBits"]),
        (ORT, quantized("int4-g64-asym", SHAPE), ["MatMulNBits"]),
        (ORT, quantized("int8-g128-asym", SHAPE), ["MatMulNBits"]),
        (ORT, quantized("int2-g32-sym", SHAPE), ["MatMulNBits"]),
        (ORT, quantized("int4-g32-sym", SHAPE, act_order=True), ["Gather", "MatMulNBits"]),
        (ORT, quantized("int8-channel-sym", SHAPE), DEQUANTIZED),
        (ORT, quantized("fp8-e4m3-block128", SHAPE), DEQUANTIZED),
        (ORT, floating(SHAPE, torch.bfloat16), ["Transpose", "MatMul"]),
        (STANDARD, quantized("int4-g128-sym", SHAPE), DEQUANTIZED),
        (STANDARD, quantized("int4-g32-asym", SHAPE, act_order=True), ["Gather", *DEQUANTIZED]),
        (STANDARD, quantized("int8-channel-asym", SHAPE), DEQUANTIZED),
        (STANDARD, quantized("fp8-e4m3-tensor", SHAPE), DEQUANTIZED),
        (STANDARD, quantized("fp8-e4m3-channel", SHAPE), DEQUANTIZED),
        (STANDARD, quantized("fp8-e4m3-block128", SHAPE), DEQUANTIZED),
        (STANDARD, floating(SHAPE, torch.float32), ["Transpose", "MatMul"]),
    ],
)
def test_every_storage_form(tmp_path, precision, dialect, weight, operators):
    bias = floating(SHAPE[:1], torch.bfloat16, seed=1)
    path = _write(tmp_path, weight, OnnxOptions(dialect=dialect, precision=precision), bias)
    assert sorted(_operators(path)) == sorted([*operators, "Add"])
    x = np.random.default_rng(0).standard_normal((2, 3, SHAPE[1]))
    x = x.astype(precision.data_type.numpy())
    expected = x.astype(np.float64) @ weight.values().double().numpy().T + bias.values().numpy()
    found = _run(path, x)
    assert np.abs(found - expected).max() < TOLERANCE[precision] * np.abs(expected).max()


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("dialect", Dialect)
def test_static_float8_activations_are_rounded(tmp_path, dialect, precision):
    scale = 0.004  # 448 of it is 1.8: what is larger must saturate
    weight = dataclasses.replace(quantized("fp8-e4m3-channel", SHAPE), input_scale=scale)
    path = _write(tmp_path, weight, OnnxOptions(dialect=dialect, precision=precision), None)
    x = np.random.default_rng(0).standard_normal((2, 3, SHAPE[1]))
    x = x.astype(precision.data_type.numpy())
    scaled = (torch.from_numpy(x).float() / np.float32(scale)).clamp(-448, 448)
    rounded = scaled.to(torch.float8_e4m3fn).double() * np.float32(scale)
    expected = rounded.numpy() @ weight.values().double().numpy().T
    found = _run(path, x)
    assert np.abs(found - expected).max() < TOLERANCE[precision] * np.abs(expected).max()


@pytest.mark.parametrize(
    ("dialect", "grid"), [(ORT, "int3-g32-sym"), (STANDARD, "int2-g32-sym"), (ORT, "Q4_K")]
)
def test_grids_that_a_dialect_cannot_hold_are_refused_by_name(tmp_path, dialect, grid):
    with pytest.raises(QuantizationError, match=grid):
        _write(tmp_path, quantized(grid, SHAPE), OnnxOptions(dialect=dialect), None)
    assert not list(tmp_path.iterdir())
