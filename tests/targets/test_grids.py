"""The plan's light table of grids against the grids of the numeric core."""

import pytest

from tightfit.errors import QuantizationError
from tightfit.quant.grids.float8 import FLOAT8_GRIDS
from tightfit.quant.grids.ggml import GGML_GRIDS as CORE_GGML
from tightfit.quant.grids.integer import INTEGER_GRIDS
from tightfit.quant.registry import get_grid
from tightfit.targets.grids import FLOAT8, INTEGERS, short_name, uniform_grid
from tightfit.targets.onnx_data import GraphKind, weight_sizes
from tightfit.targets.schemes.ggml_types import GGML_GRIDS

FLOAT16 = GraphKind(precision="float16", own_operators=False)


def test_the_same_grids_exist() -> None:
    assert list(INTEGERS) == [grid.name for grid in INTEGER_GRIDS]
    assert list(FLOAT8) == [grid.name for grid in FLOAT8_GRIDS]
    assert set(GGML_GRIDS) == {grid.name for grid in CORE_GGML}


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("width", [96, 128, 100])
def test_the_same_widths_are_possible(name: str, width: int) -> None:
    try:
        get_grid(name).check_shape((4, width))
        possible = True
    except QuantizationError:
        possible = False
    assert INTEGERS[name].divides(width) == possible


@pytest.mark.parametrize("name", [*INTEGERS, *FLOAT8])
def test_the_same_bytes(name: str) -> None:
    # Rows whose zero points fill whole bytes: a grid's own packed row pads each one.
    shape = (256, 1024) if not name.endswith("asym") else (256, 4096)
    expected = get_grid(name).bits_per_weight(shape) * shape[0] * shape[1] / 8
    if name == "fp8-e4m3-block128":
        # ONNX repeats the scale of a block in each of its 128 rows.
        expected += 4 * (shape[0] - shape[0] // 128) * shape[1] // 128
    if "channel" in name and name.endswith("asym"):
        # One zero point a row: a packed row gives it a byte of its own.
        expected -= shape[0] * (8 - INTEGERS[name].bits) / 8
    assert sum(weight_sizes(name, shape, FLOAT16)) == expected


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("int4-g128", "int4-g128-sym"),
        ("INT4-G128-ASYM", "int4-g128-asym"),
        ("int8-channel", "int8-channel-sym"),
        ("fp8", "fp8-e4m3-channel"),
        ("fp8-tensor", "fp8-e4m3-tensor"),
        ("fp8-e4m3-block128", "fp8-e4m3-block128"),
        ("int9-g128", None),
        ("int4-g256", None),
        ("int4", None),
        ("q4_k", None),
        ("", None),
    ],
)
def test_names(text: str, grid: str | None) -> None:
    assert uniform_grid(text) == grid


@pytest.mark.parametrize("name", [*INTEGERS, *FLOAT8])
def test_short_names_mean_the_same(name: str) -> None:
    assert uniform_grid(short_name(name)) == name
