"""Embedding rows in each storage form, and a tied head that adds no bytes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from support.onnx_models import OnnxDecoder
from support.onnx_weights import floating, quantized

from tightfit.calib.architecture import LLAMA
from tightfit.errors import QuantizationError
from tightfit.export.onnx.embedding import embed, head
from tightfit.export.onnx.graph import GraphBuilder, OnnxGraph
from tightfit.export.onnx.options import Dialect, OnnxOptions, Precision
from tightfit.export.onnx.step import BATCH, LENGTH
from tightfit.export.onnx.writer import write_onnx
from tightfit.export.weights import Weight, Weights

SHAPE = (96, 64)
ORT, STANDARD = Dialect.ORT, Dialect.STANDARD
IDS = np.array([[0, 95, 7, 7], [50, 1, 2, 31]])


def _graph(weights: Weights, options: OnnxOptions) -> OnnxGraph:
    """Rows of the embedding, and the head's product with them."""
    graph = GraphBuilder("test", data_file="model.onnx.data")
    ids = graph.input("input_ids", ir.DataType.INT64, (BATCH, LENGTH))
    dimensions = SimpleNamespace(hidden_size=SHAPE[1])
    rows = embed(graph, ids, weights, dimensions, LLAMA, options)
    dtype = options.precision.data_type
    x = graph.op("Cast", [rows], name="x", to=int(dtype))
    logits = head(graph, x, weights, LLAMA, options)
    outputs = [
        (rows, ir.DataType.FLOAT, (BATCH, LENGTH, SHAPE[1])),
        (logits, dtype, (BATCH, LENGTH, SHAPE[0])),
    ]
    return graph.finish(outputs, producer="test")


def _run(folder: Path, graph: OnnxGraph) -> list[np.ndarray]:
    path = write_onnx(folder / "model.onnx", graph)[0]
    onnx.checker.check_model(str(path), full_check=True)
    return OnnxDecoder(path).session.run(None, {"input_ids": IDS})


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize(
    ("dialect", "weight"),
    [
        (ORT, floating(SHAPE, torch.bfloat16)),
        (ORT, quantized("int4-g32-sym", SHAPE)),
        (ORT, quantized("int4-g32-asym", SHAPE)),
        (ORT, quantized("int8-g64-sym", SHAPE)),
        (ORT, quantized("int2-g32-asym", SHAPE)),
        (STANDARD, floating(SHAPE, torch.float16)),
        (STANDARD, quantized("int4-g32-sym", SHAPE)),
        (STANDARD, quantized("int8-channel-asym", SHAPE)),
        (STANDARD, quantized("fp8-e4m3-tensor", SHAPE)),
    ],
)
def test_a_tied_head_reads_the_embedding_s_bytes(tmp_path, precision, dialect, weight):
    graph = _graph({LLAMA.embedding: weight}, OnnxOptions(dialect=dialect, precision=precision))
    alone = sum(tensor.n_bytes for _, tensor in graph.data)
    assert len({tensor.name for _, tensor in graph.data}) == len(graph.data)
    assert alone <= weight_bytes(weight, precision)
    rows, logits = _run(tmp_path, graph)
    table = weight.values().numpy()
    # Integer codes times float16 scales are rounded once where the graph is float16, else nothing.
    rounds = precision is Precision.FLOAT16 and "int" in getattr(weight, "grid", "")
    held = table.astype(np.float16 if rounds else np.float32)
    np.testing.assert_array_equal(rows, held[IDS].astype(np.float32))
    expected = table[IDS].astype(np.float64) @ table.astype(np.float64).T
    tolerance = 2e-6 if precision is Precision.FLOAT32 else 2e-3
    assert np.abs(logits - expected).max() < tolerance * np.abs(expected).max()


def weight_bytes(weight: Weight, precision: Precision) -> int:
    """Upper bound: codes once, one scale and one zero point per group or row."""
    n_rows, n_columns = weight.shape
    if not hasattr(weight, "grid"):
        return n_rows * n_columns * weight.dtype.itemsize
    params = weight.load().params.values()
    bits = int(weight.grid[3]) if weight.grid.startswith("int") else 8
    scale_bytes = 4 if "fp8" in weight.grid or precision is Precision.FLOAT32 else 2
    return n_rows * n_columns * bits // 8 + sum(part.numel() for part in params) * scale_bytes


def test_an_untied_head_has_its_own_grid(tmp_path):
    weights = {
        LLAMA.embedding: quantized("int8-g32-sym", SHAPE),
        LLAMA.head: quantized("int4-g64-asym", SHAPE, seed=1),
    }
    rows, logits = _run(tmp_path, _graph(weights, OnnxOptions()))
    expected = rows @ weights[LLAMA.head].values().numpy().T
    np.testing.assert_allclose(logits, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("grid", ["int8-channel-sym", "fp8-e4m3-channel"])
def test_ort_refuses_embeddings_whose_rows_it_cannot_fetch(grid):
    weights = {LLAMA.embedding: quantized(grid, SHAPE)}
    with pytest.raises(QuantizationError, match=grid):
        _graph(weights, OnnxOptions(dialect=ORT))
