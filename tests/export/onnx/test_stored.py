"""onnxruntime gets from the stored bytes what the quantizer meant, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support.onnx_weights import floating, quantized, raw_bytes, run_node

from tightfit.export.onnx import stored
from tightfit.export.onnx.options import Precision
from tightfit.export.onnx.stored import (
    dequantize_linear,
    float_tensor,
    matmul_nbits,
)
from tightfit.export.weights import FloatWeight, QuantizedWeight

NUMPY = {Precision.FLOAT32: np.float32, Precision.FLOAT16: np.float16}
SIDES = ("sym", "asym")


def multiply_by_identity(weight: QuantizedWeight, precision: Precision) -> np.ndarray:
    """(O, I): MatMulNBits of an identity matrix, gathered first as a graph does."""
    n_rows, n_columns = weight.shape
    form = matmul_nbits("w", weight, precision)
    names = ["x", "w.codes", "w.scales"] + ([] if form.zeros is None else ["w.zeros"])
    nodes = []
    if form.order is not None:
        nodes.append(helper.make_node("Gather", ["x", "w.order"], ["gathered"], axis=1))
        names[0] = "gathered"
    nodes.append(
        helper.make_node(
            "MatMulNBits",
            names,
            ["y"],
            domain="com.microsoft",
            K=n_columns,
            N=n_rows,
            bits=form.bits,
            block_size=form.block_size,
            accuracy_level=1,
        )
    )
    kind = int(precision.data_type)
    x = helper.make_tensor_value_info("x", kind, ["T", n_columns])
    identity = np.eye(n_columns, dtype=NUMPY[precision])
    parts = [form.codes, form.scales, form.zeros, form.order]
    return run_node(nodes, parts, [x], {"x": identity}, output_type=kind).T


def dequantize(weight: QuantizedWeight, precision: Precision) -> np.ndarray:
    """(O, I): DequantizeLinear, columns as stored."""
    form = dequantize_linear("w", weight, precision)
    names = ["w.codes", "w.scales"] + ([] if form.zeros is None else ["w.zeros"])
    node = helper.make_node(
        "DequantizeLinear", names, ["y"], axis=form.axis, block_size=form.block_size
    )
    parts = [form.codes, form.scales, form.zeros]
    return run_node([node], parts, output_type=int(form.scales.dtype))


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmul_nbits_holds_the_numbers(
    bits: int, group: int, side: str, precision: Precision
) -> None:
    # Three groups of 128 leave zero points that end inside a byte.
    weight = quantized(f"int{bits}-g{group}-{side}", (5, 384))
    expected = weight.values().numpy().astype(NUMPY[precision])
    np.testing.assert_array_equal(multiply_by_identity(weight, precision), expected)


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("group", ["g32", "g64", "g128", "channel"])
@pytest.mark.parametrize("bits", [4, 8])
def test_dequantize_linear_holds_the_numbers(
    bits: int, group: str, side: str, precision: Precision
) -> None:
    # Odd rows and, per channel, odd columns: 4-bit rows do not end on whole bytes.
    weight = quantized(f"int{bits}-{group}-{side}", (5, 33 if group == "channel" else 384))
    expected = weight.values().numpy().astype(NUMPY[precision])
    np.testing.assert_array_equal(dequantize(weight, precision), expected)


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("shape", [(256, 128), (130, 200), (3, 5)])
@pytest.mark.parametrize("kind", ["tensor", "channel", "block128"])
def test_float8_holds_the_numbers(kind: str, shape: tuple[int, int], precision: Precision) -> None:
    weight = quantized(f"fp8-e4m3-{kind}", shape)
    values = dequantize(weight, precision)
    assert values.dtype == np.float32, "a float16 scale would change the numbers"
    np.testing.assert_array_equal(values, weight.values().numpy())


@pytest.mark.parametrize("side", SIDES)
def test_act_order_sorts_columns_by_group(side: str) -> None:
    weight = quantized(f"int4-g32-{side}", (6, 160), act_order=True)
    expected = weight.values().numpy()
    np.testing.assert_array_equal(multiply_by_identity(weight, Precision.FLOAT32), expected)
    order_I = np.frombuffer(
        raw_bytes(dequantize_linear("w", weight, Precision.FLOAT32).order), dtype=np.int64
    )
    assert not np.array_equal(order_I, np.arange(160))
    np.testing.assert_array_equal(dequantize(weight, Precision.FLOAT32), expected[:, order_I])
    groups = weight.load().group_index_I.numpy()[order_I]
    assert (np.diff(groups) >= 0).all()
    inside = np.diff(order_I)[np.diff(groups) == 0]
    assert (inside > 0).all(), "columns of a group keep their order"


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    groups=st.integers(1, 5),
    bits=st.sampled_from([2, 4, 8]),
    side=st.sampled_from(SIDES),
    chunk=st.sampled_from([1, 200, 1 << 21]),
    seed=st.integers(0, 99),
)
def test_bytes_are_the_obvious_ones_in_any_chunks(
    rows: int, groups: int, bits: int, side: str, chunk: int, seed: int
) -> None:
    weight = quantized(f"int{bits}-g32-{side}", (rows, groups * 32), seed=seed)
    tensor = weight.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "_CHUNK_ELEMENTS", chunk)
        form = matmul_nbits("w", weight, Precision.FLOAT32)
        assert raw_bytes(form.codes) == slow_rows(tensor.codes_OI, bits)
        assert len(raw_bytes(form.codes)) == form.codes.n_bytes
        if form.zeros is not None:
            assert raw_bytes(form.zeros) == slow_rows(tensor.params["zero"], bits)
            assert len(raw_bytes(form.zeros)) == form.zeros.n_bytes
        if bits > 2:
            flat = dequantize_linear("w", weight, Precision.FLOAT32)
            middle = 0 if form.zeros is not None else 1 << (bits - 1)
            elements = [
                (code - middle) % (1 << bits) for code in tensor.codes_OI.flatten().tolist()
            ]
            assert raw_bytes(flat.codes) == slow_pack(elements, bits)


def slow_rows(codes_OI: torch.Tensor, bits: int) -> bytes:
    """Each row on whole bytes."""
    return b"".join(slow_pack(row, bits) for row in codes_OI.tolist())


def slow_pack(codes: list[int], bits: int) -> bytes:
    """One big number, the first code in its low bits."""
    number = sum(code << (place * bits) for place, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (4, 1, 3)])
def test_floats_keep_their_bits(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_CHUNK_ELEMENTS", 4)
    weight = floating(shape, dtype)
    tensor = float_tensor("w", weight)
    assert raw_bytes(tensor) == weight.load().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert len(raw_bytes(tensor)) == tensor.n_bytes


def test_a_float_tensor_is_converted_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_CHUNK_ELEMENTS", 64)
    values = torch.randn(20, 16).to(torch.bfloat16)
    weight = FloatWeight(shape=(20, 16), dtype=torch.float32, load=lambda: values)
    sizes = [len(bytes(chunk)) for chunk in float_tensor("w", weight).chunks()]
    assert sizes == [4 * 16 * 4] * 5


def test_parameters_are_kept_from_the_codes_and_given_up_once_written() -> None:
    weight = quantized("int4-g32-asym", (4, 64))
    loads = []

    def load() -> object:
        loads.append(1)
        return weight.load()

    counted = QuantizedWeight(shape=weight.shape, grid=weight.grid, load=load)
    form = matmul_nbits("w", counted, Precision.FLOAT16)
    loads.clear()
    first = [raw_bytes(tensor) for tensor in (form.codes, form.scales, form.zeros)]
    assert len(loads) == 1
    assert first[1:] == [raw_bytes(tensor) for tensor in (form.scales, form.zeros)]
    assert len(loads) == 3, "nothing stays in memory"


def test_an_act_order_that_the_graph_was_not_built_for_is_an_error() -> None:
    plain, ordered = (
        quantized("int4-g32-sym", (4, 64), act_order=order) for order in (False, True)
    )
    other = quantized("int4-g32-sym", (4, 64), seed=1, act_order=True)
    for declared, loaded in ((plain, ordered), (ordered, plain), (ordered, other)):
        weight = replace(declared, load=loaded.load)
        for form in (matmul_nbits, dequantize_linear):
            with pytest.raises(AssertionError, match="act-order"):
                raw_bytes(form("w", weight, Precision.FLOAT32).codes)


def test_element_types_are_those_that_tensorrt_takes() -> None:
    kinds = {
        "int4-g128-sym": TensorProto.INT4,
        "int4-g128-asym": TensorProto.UINT4,
        "int8-channel-sym": TensorProto.INT8,
        "fp8-e4m3-channel": TensorProto.FLOAT8E4M3FN,
    }
    for name, kind in kinds.items():
        form = dequantize_linear("w", quantized(name, (4, 128)), Precision.FLOAT16)
        assert int(form.codes.dtype) == kind
        assert (form.zeros is not None) == name.endswith("asym")
