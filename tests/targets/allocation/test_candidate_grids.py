"""Candidates against what writers, grids and runtimes take."""

import pytest

from tightfit.errors import QuantizationError
from tightfit.export.onnx.grids import check_embedding, check_linear
from tightfit.export.onnx.options import Dialect
from tightfit.export.tensorrt.support import GRID_TYPES
from tightfit.quant.registry import GRIDS
from tightfit.targets.allocation.grids import candidate_grids
from tightfit.targets.allocation.noise import RELATIVE_NOISE
from tightfit.targets.formats import CHECKPOINT_FORMATS, FORMATS

MIXED = [name for name in FORMATS if name not in CHECKPOINT_FORMATS]
"""Checkpoints have one grid."""
WIDTHS = (4096, 1536, 576, 96, 64, 40)


def everything(_grid: str) -> bool:
    return True


def takes(grid: str, width: int) -> bool:
    try:
        GRIDS[grid].check_shape((8, width))
    except QuantizationError:
        return False
    return True


@pytest.mark.parametrize("format_name", MIXED)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("is_embedding", [True, False])
def test_candidates_can_be_stored(format_name: str, width: int, is_embedding: bool) -> None:
    found = candidate_grids(format_name, (8, width), everything, is_embedding=is_embedding)
    assert found
    assert len(set(found)) == len(found)
    for grid in found:
        assert grid in FORMATS[format_name].storable
        assert grid in RELATIVE_NOISE
        assert grid == "F16" or takes(grid, width)
        if format_name == "tensorrt":
            assert grid in GRID_TYPES
        elif format_name == "onnx" and grid != "F16":
            check = check_embedding if is_embedding else check_linear
            check(grid, Dialect.ORT)


def test_widths_of_a_gguf() -> None:
    super_blocks = {"Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K"}
    blocks = {"Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    assert set(candidate_grids("gguf", (8, 512), everything)) == super_blocks | blocks
    assert set(candidate_grids("gguf", (8, 96), everything)) == blocks
    assert candidate_grids("gguf", (8, 40), everything) == ("F16",)
    # A stack of matrices has the width of each.
    assert set(candidate_grids("gguf", (4, 512, 96), everything)) == blocks


def test_odd_widths_of_an_onnx() -> None:
    assert candidate_grids("onnx", (8, 40), everything) == ("int8-channel-sym",)
    assert candidate_grids("onnx", (8, 40), everything, is_embedding=True) == ("F16",)


@pytest.mark.parametrize("format_name", MIXED)
def test_the_target_decides(format_name: str) -> None:
    every = candidate_grids(format_name, (8, 512), everything)
    for kept in every:
        assert candidate_grids(format_name, (8, 512), kept.__eq__) == (kept,)
    assert candidate_grids(format_name, (8, 512), lambda _grid: False) == ("F16",)


def test_eight_bits_are_the_most() -> None:
    for format_name in MIXED:
        for grid in candidate_grids(format_name, (4096, 4096), everything):
            assert GRIDS[grid].bits_per_weight((4096, 4096)) <= 8.5 + 0.25
