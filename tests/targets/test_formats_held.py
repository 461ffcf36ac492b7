"""What a format is said to hold against the writers that hold it."""

import pytest
from gguf import GGMLQuantizationType as Type

from tightfit.errors import TightfitError, UsageError
from tightfit.export.onnx.grids import check_linear
from tightfit.export.onnx.options import Dialect
from tightfit.quant.registry import GRIDS
from tightfit.targets.formats import (
    FORMATS,
    check_storable,
    executed_as,
    find_format,
    ggml_type,
)
from tightfit.targets.schemes.ggml_types import GGML_GRIDS


def accepts(check, *arguments: object) -> bool:
    try:
        check(*arguments)
    except TightfitError:
        return False
    return True


@pytest.mark.parametrize("grid", GRIDS)
def test_onnx_holds_what_a_dialect_takes(grid: str) -> None:
    written = any(accepts(check_linear, grid, dialect) for dialect in Dialect)
    assert accepts(check_storable, "onnx", grid) == written


def test_gguf_holds_ggmls_grids_and_the_integers_of_their_form() -> None:
    integers = {4: Type.Q4_0, 5: Type.Q5_0, 8: Type.Q8_0}
    # Levels from -(2**bits - 1) to 2**bits - 1.
    both_ways = {2: Type.Q4_0, 3: Type.Q4_0, 4: Type.Q5_0}
    both_ways |= dict.fromkeys((5, 6, 7), Type.Q8_0)
    groups = ("g32", "g64", "g128", "channel")
    expected = {grid: Type[grid] for grid in GGML_GRIDS} | {
        f"int{bits}-{group}-{sign}": kind
        for sign, types in (("sym", integers), ("asym", both_ways))
        for bits, kind in types.items()
        for group in groups
    }
    held = {grid: ggml_type(grid) for grid in GRIDS if accepts(check_storable, "gguf", grid)}
    assert held == expected


def test_tensorrt_holds_what_its_dialect_takes() -> None:
    held = {grid for grid in GRIDS if accepts(check_storable, "tensorrt", grid)}
    assert held == {
        "int4-g64-sym",
        "int4-g128-sym",
        "int8-channel-sym",
        "fp8-e4m3-tensor",
        "fp8-e4m3-channel",
    }
    for grid in held:
        check_linear(grid, Dialect.STANDARD)


def test_refusal_names_the_formats_that_do() -> None:
    with pytest.raises(UsageError, match="ONNX cannot hold the numbers of the grid Q4_K") as caught:
        check_storable("onnx", "Q4_K")
    assert caught.value.hint == "formats that hold Q4_K: gguf"
    with pytest.raises(UsageError, match="TensorRT cannot hold") as caught:
        check_storable("tensorrt", "int6-g64-sym")
    assert "no format" in caught.value.hint


def test_a_ggufs_runtime_meets_ggmls_types() -> None:
    assert executed_as("gguf", "int4-g128-sym") == "Q4_0"
    assert executed_as("gguf", "int8-channel-sym") == "Q8_0"
    assert executed_as("gguf", "Q6_K") == "Q6_K"
    assert executed_as("onnx", "int4-g128-sym") == "int4-g128-sym"


def test_unknown_format() -> None:
    with pytest.raises(UsageError) as caught:
        find_format("exl2")
    assert caught.value.allowed == "formats: " + ", ".join(FORMATS)
