"""Small decoders and networks for TensorRT, and their engines."""

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.shapes import tensor_shapes
from tightfit.export.onnx.decoder import build_graph
from tightfit.export.onnx.graph import GraphBuilder, StoredTensor
from tightfit.export.onnx.options import Dialect, OnnxOptions, Precision
from tightfit.export.onnx.writer import write_onnx
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight
from tightfit.quant.grids.float8 import Float8Grid
from tightfit.quant.grids.integer import IntegerGrid
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor
from tightfit.runtimes.tensorrt.build import EngineReport, build_engine
from tightfit.runtimes.tensorrt.profile import Profile

STANDARD = OnnxOptions(dialect=Dialect.STANDARD, precision=Precision.FLOAT16)
PROFILE = Profile(context_tokens=128, max_batch=3, prompt_tokens=16)


def decoder_onnx(
    folder: Path, checkpoint: Checkpoint, grid: str, *, embedding: str = "float16"
) -> Path:
    """The standard ONNX file of a checkpoint: linears on `grid` (`float16`: none)."""
    architecture = checkpoint.architecture
    shapes = tensor_shapes(architecture, checkpoint.dimensions)
    weights: dict[str, Weight] = {}
    for name, shape in shapes.items():
        chosen = embedding if name in (architecture.embedding, architecture.head) else grid
        load = partial(checkpoint.load, name)
        if len(shape) < 2 or chosen == "float16":
            half = partial(lambda load: load().to(torch.float16), load)
            weights[name] = FloatWeight(shape=shape, dtype=torch.float16, load=half)
        else:
            weights[name] = QuantizedWeight(
                shape=(shape[0], shape[1]), grid=chosen, load=partial(_absmax, chosen, load)
            )
    graph = build_graph(checkpoint.dimensions, architecture, weights, STANDARD)
    return write_onnx(folder / "model.onnx", graph, overwrite=True)[0]


def _absmax(grid_name: str, load) -> QuantizedTensor:
    """Rounding to nearest with the plainest scale: a search over scales would take minutes."""
    w_OI: Tensor = load().float()
    grid = get_grid(grid_name)
    n_rows, n_columns = w_OI.shape
    if isinstance(grid, Float8Grid):
        params = grid.fit(w_OI)
    else:
        assert isinstance(grid, IntegerGrid)
        largest_OG = w_OI.reshape(n_rows, -1, grid.group_size or n_columns).abs().amax(dim=-1)
        params = {"scale": (largest_OG / (2 ** (grid.bits - 1) - 1)).clamp_min(1e-6).half()}
    codes_OI = grid.round(w_OI, grid.lattice(params, n_rows, n_columns))
    return QuantizedTensor(
        grid=grid_name, shape=(n_rows, n_columns), codes_OI=codes_OI, params=params
    )


def matmul_onnx(folder: Path, weight_type: str, *, width: int = 256) -> Path:
    """`x @ w.T` alone, with one weight of a type (`float16`, `int8`, `int4`, `fp8`)."""
    rng = np.random.default_rng(0)
    graph = GraphBuilder("matmul", data_file="model.onnx.data")
    # A name and a shape that the builder's profiles know.
    ids = graph.input("input_ids", ir.DataType.INT64, ("batch", "sequence"))
    table = _stored("table", ir.DataType.FLOAT16, rng.standard_normal((32, width)))
    x = graph.op("Gather", [graph.stored(table), ids], name="embedded", axis=0)
    if weight_type == "float16":
        weight = _stored("w", ir.DataType.FLOAT16, rng.standard_normal((width, width)))
        w = graph.stored(weight)
    else:
        data_type, bits, group = {
            "int8": (ir.DataType.INT8, 8, 0),
            "int4": (ir.DataType.INT4, 4, 128),
            "fp8": (ir.DataType.FLOAT8E4M3FN, 8, 0),
        }[weight_type]
        # 0x7F and 0xFF are NaN in FP8.
        raw = rng.integers(0, 0x7F, width * width * bits // 8, dtype=np.uint8).tobytes()
        codes = StoredTensor(
            name="w.codes", dtype=data_type, shape=(width, width), chunks=lambda: iter([raw])
        )
        scale_shape = (width, width // group) if group else (width,)
        scales = _stored("w.scales", ir.DataType.FLOAT16, np.full(scale_shape, 0.01))
        attributes = {"axis": 1, "block_size": group} if group else {"axis": 0}
        w = graph.op(
            "DequantizeLinear",
            [graph.stored(codes), graph.stored(scales)],
            name="dequantized",
            **attributes,
        )
    transposed = graph.op("Transpose", [w], name="transposed", perm=[1, 0])
    y = graph.op("MatMul", [x, transposed], name="logits")
    shape = ("batch", "sequence", width)
    made = graph.finish([(y, ir.DataType.FLOAT16, shape)], producer="tests")
    return write_onnx(folder / "model.onnx", made, overwrite=True)[0]


def _stored(name: str, dtype: ir.DataType, values) -> StoredTensor:
    raw = np.asarray(values, np.float16).tobytes()
    return StoredTensor(name=name, dtype=dtype, shape=np.shape(values), chunks=lambda: iter([raw]))


def engine_of(onnx_file: Path, folder: Path, *capabilities: str, **options) -> EngineReport:
    """`model.engine` and its log."""
    return build_engine(
        onnx_file,
        folder / "model.engine",
        capabilities=capabilities,
        profile=PROFILE,
        log_file=folder / "model.build.log",
        **options,
    )
