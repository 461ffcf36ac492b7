"""Weights for ONNX tests, and small models that hold them."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from tightfit.export.onnx.graph import MICROSOFT, Dim, GraphBuilder, OnnxGraph, StoredTensor
from tightfit.export.onnx.options import Dialect, Precision
from tightfit.export.onnx.stored import dequantize_linear, float_tensor, matmul_nbits
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight, Weights
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor


def quantized(
    grid_name: str, shape: tuple[int, int], *, seed: int = 0, act_order: bool = False
) -> QuantizedWeight:
    """A random matrix with every code possible; act-order scatters the groups' columns."""
    generator = torch.Generator().manual_seed(seed)
    grid = get_grid(grid_name)
    # Heavy tails reach the outermost levels.
    w_OI = torch.randn(shape, generator=generator) ** 3
    params = grid.fit(w_OI)
    group_index_I = None
    if act_order:
        groups_I = torch.arange(shape[1], dtype=torch.int32) // grid.span
        group_index_I = groups_I[torch.randperm(shape[1], generator=generator)]
    tensor = QuantizedTensor(
        grid=grid_name,
        shape=shape,
        codes_OI=grid.round(w_OI, grid.lattice(params, *shape)),
        params=params,
        group_index_I=group_index_I,
    )
    return QuantizedWeight(
        shape=shape, grid=grid_name, load=lambda: tensor, group_index_I=group_index_I
    )


def floating(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float16, *, seed: int = 0
) -> FloatWeight:
    """A random tensor."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return FloatWeight(shape=shape, dtype=dtype, load=lambda: values)


def raw_bytes(tensor: StoredTensor) -> bytes:
    """All bytes of a stored tensor."""
    return b"".join(bytes(chunk) for chunk in tensor.chunks())


def initializer(tensor: StoredTensor) -> TensorProto:
    """A stored tensor inside the model."""
    return helper.make_tensor(
        tensor.name, int(tensor.dtype), tensor.shape, raw_bytes(tensor), raw=True
    )


def run_node(
    nodes: Sequence[NodeProto],
    stored: Sequence[StoredTensor | None],
    inputs: Sequence[ValueInfoProto] = (),
    feed: dict[str, np.ndarray] | None = None,
    *,
    output_type: int,
) -> np.ndarray:
    """Output `y` of a model of these nodes in onnxruntime, nothing fused or folded."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        list(inputs),
        [helper.make_tensor_value_info("y", output_type, ["rows", "columns"])],
        [initializer(tensor) for tensor in stored if tensor is not None],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=11, opset_imports=opsets)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed or {})[0]


def small_graph(
    weights: Weights,
    *,
    dialect: Dialect = Dialect.ORT,
    precision: Precision = Precision.FLOAT32,
    data_file: str = "model.onnx.data",
) -> OnnxGraph:
    """A graph in which every weight is read by the node that reads it in a real one."""
    builder = GraphBuilder("test", data_file=data_file)
    outputs = [
        _read_weight(builder, name, weight, dialect, precision) for name, weight in weights.items()
    ]
    return builder.finish(outputs, producer="test")


def _read_weight(
    builder: GraphBuilder, name: str, weight: Weight, dialect: Dialect, precision: Precision
) -> tuple[ir.Value, ir.DataType, tuple[Dim, ...]]:
    if isinstance(weight, FloatWeight):
        tensor = builder.stored(float_tensor(name, weight))
        return builder.op("Identity", [tensor], name=f"{name}.out"), tensor.dtype, weight.shape
    n_rows, n_columns = weight.shape
    if dialect is Dialect.ORT and weight.grid.startswith("int"):
        form = matmul_nbits(name, weight, precision)
        x = builder.input(f"{name}.x", precision.data_type, ("T", n_columns))
        if form.order is not None:
            x = builder.op("Gather", [x, builder.stored(form.order)], name=f"{name}.g", axis=1)
        parts = (form.codes, form.scales, form.zeros)
        y = builder.op(
            "MatMulNBits",
            [x, *(None if part is None else builder.stored(part) for part in parts)],
            name=f"{name}.out",
            domain=MICROSOFT,
            K=n_columns,
            N=n_rows,
            bits=form.bits,
            block_size=form.block_size,
        )
        return y, precision.data_type, ("T", n_rows)
    form = dequantize_linear(name, weight, precision)
    if form.order is not None:
        builder.stored(form.order)
    parts = (form.codes, form.scales, form.zeros)
    y = builder.op(
        "DequantizeLinear",
        [None if part is None else builder.stored(part) for part in parts],
        name=f"{name}.out",
        axis=form.axis,
        block_size=form.block_size,
    )
    return y, form.scales.dtype, weight.shape
