"""The table of what runs where, and what a refusal tells."""

import pytest

from tightfit.errors import UsageError
from tightfit.export.tensorrt.support import (
    CARDS,
    EXPERIMENTAL,
    GRID_TYPES,
    WEIGHT_TYPES,
    check_support,
    grids_for,
    is_experimental,
)
from tightfit.quant.registry import GRIDS


def test_every_grid_of_the_table_exists():
    assert set(GRID_TYPES) - {"F16", "BF16", "F32"} <= set(GRIDS)
    assert set(GRID_TYPES.values()) <= set(WEIGHT_TYPES)
    assert set(CARDS) >= EXPERIMENTAL
    assert all(set(CARDS) >= cards for cards in WEIGHT_TYPES.values())


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "12.0"])
def test_int4_runs_everywhere(capability):
    check_support(capability, ["int4-g128-sym", "int4-g64-sym", "F16", "int8-channel-sym"])


@pytest.mark.parametrize(("capability", "runs"), [("8.0", 0), ("8.6", 0), ("8.9", 1), ("12.0", 1)])
def test_fp8_needs_ada(capability, runs):
    assert ("fp8-e4m3-channel" in grids_for(capability)) == bool(runs)
    if runs:
        check_support(capability, ["fp8-e4m3-channel", "fp8-e4m3-tensor"])
        return
    with pytest.raises(UsageError) as caught:
        check_support(capability, ["int4-g128-sym", "fp8-e4m3-channel"])
    message = str(caught.value)
    assert f"compute capability {capability}" in message
    assert "8.9 (RTX 40), 12.0 (RTX 50)" in message
    assert "int4-g128-sym" in message


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        ("int4-g128-asym", "symmetric"),
        ("int4-g32-sym", "64 or 128"),
        ("int3-g128-sym", "4 bits"),
        ("fp8-e4m3-block128", "per tensor or per row"),
        ("Q4_K", "no such type"),
    ],
)
def test_a_grid_that_no_engine_holds(grid, reason):
    with pytest.raises(UsageError, match=f"{grid}.*{reason}") as caught:
        check_support("8.9", [grid])
    assert "int4-g128-sym" in caught.value.allowed
    assert caught.value.hint


def test_a_target_without_a_card():
    with pytest.raises(UsageError, match="NVIDIA cards only") as caught:
        check_support(None, ["int4-g128-sym"])
    assert "gguf" in caught.value.hint


def test_an_unknown_card():
    with pytest.raises(UsageError, match=r"compute capability 7\.0") as caught:
        check_support("7.0", ["int4-g128-sym"])
    assert "8.6 (RTX 30)" in caught.value.allowed


def test_a_deepseek_v3():
    with pytest.raises(UsageError, match="all experts") as caught:
        check_support("8.9", ["int4-g128-sym"], model_type="deepseek_v3")
    assert "TensorRT-LLM" in caught.value.hint


def test_only_the_a100_is_experimental():
    assert [card for card in CARDS if is_experimental(card)] == ["8.0"]
