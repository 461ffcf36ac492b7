"""Weights are read back from the graph alone, and damage is refused."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from support.onnx_weights import floating, quantized, small_graph

from tightfit.errors import ArtifactError
from tightfit.export.onnx import dequantize, readback
from tightfit.export.onnx.graph import MICROSOFT, GraphBuilder
from tightfit.export.onnx.options import Dialect, Precision
from tightfit.export.onnx.qmoe import stacked
from tightfit.export.onnx.readback import StoredWeight, read_weights
from tightfit.export.onnx.stored import float_tensor, matmul_nbits
from tightfit.export.onnx.writer import write_onnx
from tightfit.export.weights import Weights

ORT_WEIGHTS = {
    **{
        f"int{bits}.g{group}.{side}.weight": quantized(f"int{bits}-g{group}-{side}", (10, 384))
        for bits in (2, 4, 8)
        for group in (32, 128)
        for side in ("sym", "asym")
    },
    "ordered.weight": quantized("int4-g32-asym", (6, 160), act_order=True),
    "fp8.weight": quantized("fp8-e4m3-block128", (130, 200)),
    "model.norm.weight": floating((7,), torch.float32),
    "q_proj.bias": floating((9,), torch.bfloat16),
    "gate.e_score_correction_bias": floating((4,), torch.float32),
    "lm_head.weight": floating((30, 20), torch.float16),
}
STANDARD_WEIGHTS = {
    **{
        f"int{bits}.{group}.{side}.weight": quantized(
            f"int{bits}-{group}-{side}", (11, 33 if group == "channel" else 384)
        )
        for bits in (4, 8)
        for group in ("g32", "g128", "channel")
        for side in ("sym", "asym")
    },
    **{
        f"{kind}.weight": quantized(f"fp8-e4m3-{kind}", (130, 200))
        for kind in ("tensor", "channel", "block128")
    },
    "ordered.weight": quantized("int4-g64-sym", (6, 256), act_order=True),
    "model.norm.weight": floating((7,), torch.float16),
}
WEIGHTS = {Dialect.ORT: ORT_WEIGHTS, Dialect.STANDARD: STANDARD_WEIGHTS}


def assert_same(read: list[StoredWeight], weights: Weights) -> None:
    assert sorted(part.name for part in read) == sorted(weights)
    for part in read:
        expected = weights[part.name].values().numpy()
        assert part.shape == expected.shape
        values = part.values()
        assert values.dtype == np.float32
        # Bits, because -0.0 equals 0.0.
        np.testing.assert_array_equal(
            values.view(np.uint32), expected.view(np.uint32), err_msg=part.name
        )


@pytest.mark.parametrize("chunk", [1, 1 << 22])
@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("dialect", list(Dialect))
def test_the_quantizers_numbers_come_back(
    dialect: Dialect,
    precision: Precision,
    chunk: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (readback, dequantize):
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    weights = WEIGHTS[dialect]
    model, _ = write_onnx(
        tmp_path / "model.onnx", small_graph(weights, dialect=dialect, precision=precision)
    )
    assert_same(list(read_weights(model)), weights)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 5),
    bits=st.sampled_from([2, 4, 8]),
    side=st.sampled_from(["sym", "asym"]),
    act_order=st.booleans(),
    dialect=st.sampled_from(list(Dialect)),
)
def test_any_shape_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    groups: int,
    bits: int,
    side: str,
    act_order: bool,
    dialect: Dialect,
) -> None:
    bits = bits if dialect is Dialect.ORT else max(4, bits)
    grid = f"int{bits}-g32-{side}"
    weights = {"w.weight": quantized(grid, (rows, groups * 32), act_order=act_order)}
    path = tmp_path_factory.mktemp("any") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dequantize, "_CHUNK_ELEMENTS", 1)
        write_onnx(path, small_graph(weights, dialect=dialect))
        assert_same(list(read_weights(path)), weights)
    shutil.rmtree(path.parent)


def test_how_a_weight_is_stored_is_told(tmp_path: Path) -> None:
    weights = {
        "a.weight": quantized("int4-g128-sym", (4, 256)),
        "b.weight": quantized("fp8-e4m3-channel", (4, 256)),
        "c.weight": floating((4,), torch.bfloat16),
    }
    write_onnx(tmp_path / "model.onnx", small_graph(weights))
    told = {part.name: part.stored_as for part in read_weights(tmp_path / "model.onnx")}
    assert told == {
        "a.weight": "MatMulNBits 4 bits, blocks of 128",
        "b.weight": "DequantizeLinear FLOAT8E4M3FN, 4 scales",
        "c.weight": "BFLOAT16",
    }


def tied_model(path: Path, grid: str) -> Weights:
    """An embedding whose bytes the head reads too, and a rope table."""
    weight = quantized(grid, (24, 64))
    builder = GraphBuilder("tied", data_file=f"{path.name}.data")
    form = matmul_nbits("embed.weight", weight, Precision.FLOAT32)
    kind = Precision.FLOAT32.data_type
    parts = [
        None if part is None else builder.stored(part)
        for part in (form.codes, form.scales, form.zeros)
    ]
    x = builder.input("x", kind, ("T", 64))
    ids = builder.input("ids", ir.DataType.INT64, ("T",))
    row_bytes = 64 * form.bits // 8
    flat = builder.stored(
        replace(form.codes, name="embed.weight.rows", shape=(24, row_bytes)),
        same_bytes_as="embed.weight.codes",
    )
    rows = builder.op(
        "GatherBlockQuantized",
        [flat, ids, *parts[1:]],
        name="rows",
        domain=MICROSOFT,
        bits=form.bits,
        block_size=form.block_size,
        quantize_axis=1,
        gather_axis=0,
    )
    logits = builder.op(
        "MatMulNBits",
        [x, *parts],
        name="logits",
        domain=MICROSOFT,
        K=64,
        N=24,
        bits=form.bits,
        block_size=form.block_size,
    )
    table = builder.stored(float_tensor("rope.cos", floating((8, 4))))
    cos = builder.op("Identity", [table], name="cos")
    outputs = [(rows, kind, ("T", 64)), (logits, kind, ("T", 24)), (cos, table.dtype, (8, 4))]
    write_onnx(path, builder.finish(outputs, producer="test"))
    return {"embed.weight": weight}


@pytest.mark.parametrize("grid", ["int4-g32-sym", "int8-g32-asym", "int4-g32-asym"])
def test_a_tied_head_is_read_once_and_a_table_never(grid: str, tmp_path: Path) -> None:
    weights = tied_model(tmp_path / "model.onnx", grid)
    (embedding,) = read_weights(tmp_path / "model.onnx")
    assert embedding.name == "embed.weight"
    np.testing.assert_array_equal(embedding.values(), weights["embed.weight"].values().numpy())


@pytest.mark.parametrize("side", ["sym", "asym"])
def test_experts_are_unstacked(side: str, tmp_path: Path) -> None:
    prefix = "model.layers.1.mlp.experts"
    shapes = {"gate_proj": (32, 96), "up_proj": (32, 96), "down_proj": (96, 32)}
    weights = {
        f"{prefix}.{expert}.{part}.weight": quantized(
            f"int4-g32-{side}", shape, seed=10 * expert + len(part)
        )
        for expert in range(3)
        for part, shape in shapes.items()
    }
    builder = GraphBuilder("experts", data_file="model.onnx.data")
    kind = Precision.FLOAT32.data_type
    x = builder.input("x", kind, ("T", 96))
    chosen = builder.input("chosen", kind, ("T", 3))
    up, down = (
        [
            None if part is None else builder.stored(part)
            for part in stacked(weights, prefix, projection, 3, Precision.FLOAT32)
        ]
        for projection in ("gate_up_proj", "down_proj")
    )
    y = builder.op(
        "QMoE",
        [x, chosen, *up[:2], None, *down[:2], None, None, None, None, up[2], down[2]],
        name="y",
        domain=MICROSOFT,
        expert_weight_bits=4,
        block_size=32,
        swiglu_fusion=1,
    )
    path = tmp_path / "model.onnx"
    write_onnx(path, builder.finish([(y, kind, ("T", 96))], producer="test"))
    assert_same(list(read_weights(path)), weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "model.onnx"
    names = ("int4.g32.asym.weight", "ordered.weight", "model.norm.weight")
    write_onnx(path, small_graph({name: ORT_WEIGHTS[name] for name in names}))
    return path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / whole.name


def read_all(path: Path) -> None:
    for part in read_weights(path):
        part.values()


def refused(path: Path, match: str) -> None:
    with pytest.raises(ArtifactError, match=match) as caught:
        read_all(path)
    assert caught.value.hint


def test_missing_files(copy: Path) -> None:
    copy.with_name("model.onnx.data").unlink()
    refused(copy, r"model\.onnx\.data does not exist, and model\.onnx has its weights")
    copy.unlink()
    refused(copy, r"model\.onnx does not exist")


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_a_data_file_cut_short(left: int, copy: Path) -> None:
    data = copy.with_name("model.onnx.data")
    size = data.stat().st_size
    os.truncate(data, left if left >= 0 else size - 1)
    refused(copy, r"would end at byte \d+ of model\.onnx\.data, which has \d+")


@pytest.mark.parametrize("left", [0, 10, 0.5, 0.95])
def test_a_graph_cut_short(left: float, copy: Path) -> None:
    size = copy.stat().st_size
    os.truncate(copy, left if isinstance(left, int) else int(size * left))
    refused(copy, "is not a whole ONNX model")


def test_not_a_protobuf(copy: Path) -> None:
    copy.write_bytes(b"GGUF" + bytes(range(256)))
    refused(copy, "is not a whole ONNX model: its graph cannot be parsed")


def edit(path: Path, name: str, **entries: str) -> None:
    model = onnx.load(path, load_external_data=False)
    tensor = next(part for part in model.graph.initializer if part.name == name)
    for entry in tensor.external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"offset": "99999999"}, "would end at byte"),
        ({"offset": "-4096"}, "would end at byte"),
        ({"offset": "here"}, "is not a number"),
        ({"length": "5"}, "has 5 bytes and its shape needs 28"),
        ({"location": "other.data"}, "other.data does not exist"),
        ({"location": "../model.onnx.data"}, "its data file is named '../model.onnx.data'"),
        ({"location": "/etc/passwd"}, "its data file is named '/etc/passwd'"),
        ({"location": ""}, "its data file is named ''"),
    ],
)
def test_a_wrong_place(entries: dict[str, str], match: str, copy: Path) -> None:
    edit(copy, "model.norm.weight", **entries)
    refused(copy, match)


def change(path: Path, name: str, field: str, value: object) -> None:
    """Another element type or shape of a tensor, with a length that goes with it."""
    model = onnx.load(path, load_external_data=False)
    tensor = next(part for part in model.graph.initializer if part.name == name)
    if field == "data_type":
        tensor.data_type = value
    else:
        del tensor.dims[:]
        tensor.dims.extend(value)
        n_bytes = int(np.prod(value)) * (1 if name.endswith((".codes", ".zeros")) else 4)
        for entry in tensor.external_data:
            entry.value = str(n_bytes) if entry.key == "length" else entry.value
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("part", "field", "value", "match"),
    [
        ("codes", "dims", [9, 12, 16], "is not .* codes of 4 bits"),
        ("scales", "dims", [10, 6], "has 60 scales and .* are needed"),
        ("zeros", "dims", [10, 5], "has 50 bytes and 60 are needed"),
        ("codes", "data_type", TensorProto.STRING, "has the element type 8"),
    ],
)
def test_parts_that_do_not_go_together(
    part: str, field: str, value: object, match: str, copy: Path
) -> None:
    change(copy, f"int4.g32.asym.weight.{part}", field, value)
    refused(copy, match)


@pytest.mark.parametrize(
    "order", [np.arange(160) // 2, np.arange(1, 161), np.arange(-1, 159)], ids=["twice", "1", "-1"]
)
def test_an_act_order_that_is_none(order: np.ndarray, copy: Path) -> None:
    model = onnx.load(copy, load_external_data=False)
    tensor = next(part for part in model.graph.initializer if part.name == "ordered.weight.order")
    offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
    with copy.with_name("model.onnx.data").open("r+b") as data:
        data.seek(offset)
        data.write(order.astype("<i8").tobytes())
    refused(copy, r"ordered\.weight\.order is no order of 160 columns")
    change(copy, "ordered.weight.order", "dims", [80])
    refused(copy, r"ordered\.weight\.order")


def test_a_node_without_its_attributes(copy: Path) -> None:
    model = onnx.load(copy, load_external_data=False)
    node = next(part for part in model.graph.node if part.op_type == "MatMulNBits")
    del node.attribute[:]
    copy.write_bytes(model.SerializeToString())
    refused(copy, r"int4\.g32\.asym\.weight\.out lacks 'bits'")
