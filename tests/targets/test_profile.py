"""Every profile is valid and sourced; every mistake in one is named."""

from fnmatch import fnmatchcase

import pytest

from tightfit.errors import UsageError
from tightfit.quant.registry import GRIDS
from tightfit.targets.formats import FORMATS
from tightfit.targets.profile import (
    SOURCED_FIELDS,
    Target,
    list_targets,
    load_target,
    parse_profile,
    read_profile,
)
from tightfit.targets.schemes.ggml_file_types import FILE_TYPES
from tightfit.targets.schemes.scheme import parse_scheme

FLOAT_TYPES = ("F32", "F16", "BF16")
VALID = {
    "description": "a card",
    "kind": "gpu",
    "device_count": 2,
    "memory_gib": 8,
    "reserved_gib": 1,
    "runtime_overhead_gib": 0.5,
    "bandwidth_gb_s": 100,
    "compute_capability": "8.6",
    "tensor_types": ["f16"],
    "preferred_schemes": {"gguf": ["q4_k_m"]},
    "runtimes": {"llama.cpp": ["Q*"]},
    "sources": dict.fromkeys(SOURCED_FIELDS, "a data sheet"),
}


@pytest.fixture(params=list_targets())
def target(request: pytest.FixtureRequest) -> Target:
    return load_target(request.param)


def test_first_set_is_there() -> None:
    rtx = {"rtx3060-8gb", "rtx3060-12gb", "rtx4090-24gb", "rtx5090-32gb"}
    assert set(list_targets()) == rtx | {"a100-80gb", "cpu-16gb"}


def test_grid_patterns_name_grids_that_exist(target: Target) -> None:
    for runtime, patterns in target.runtimes.items():
        for pattern in patterns:
            known = [grid for grid in (*GRIDS, *FLOAT_TYPES) if fnmatchcase(grid, pattern)]
            assert known, f"{target.name}: {runtime} executes nothing called {pattern}"


def test_fp8_needs_a_tensor_core_or_a_cpu(target: Target) -> None:
    executes_fp8 = any(
        target.executes(runtime, grid)
        for runtime in target.runtimes
        for grid in GRIDS
        if grid.startswith("fp8")
    )
    assert executes_fp8 == ("fp8" in target.tensor_types or target.kind == "cpu")


def test_tensorrt_takes_only_what_it_can_build(target: Target) -> None:
    integers = {"int4-g64-sym", "int4-g128-sym", "int8-channel-sym"}
    floats = {"fp8-e4m3-tensor", "fp8-e4m3-channel"}
    executed = {grid for grid in GRIDS if target.executes("tensorrt-rtx", grid)}
    if target.compute_capability is None:
        assert not executed
        assert "tensorrt" not in target.preferred_schemes
    else:
        new = target.compute_capability in ("8.9", "12.0")
        assert executed == (integers | floats if new else integers)


def test_preferred_schemes_are_executed(target: Target) -> None:
    for format_, names in target.preferred_schemes.items():
        for name in names:
            scheme = parse_scheme(name, format=format_)
            assert scheme.name == name
            grids = {scheme.base.default.name if format_ == "gguf" else scheme.base}
            assert all(target.executes(FORMATS[format_].runtime, grid) for grid in grids)


def test_preferred_file_types_shrink(target: Target) -> None:
    order = list(FILE_TYPES)
    places = [order.index(scheme) for scheme in target.preferred_schemes["gguf"]]
    assert places == sorted(places)


def test_the_first_of_each_format_suits_every_usual_width(target: Target) -> None:
    """4 bits come in groups of 64 as well: a width of 576 must not end the plan."""
    for format_ in set(target.preferred_schemes) - {"gguf"}:
        assert {"int4-g128", "int4-g64"} <= set(target.preferred_schemes[format_])


def test_engines_for_the_a100_come_with_a_note() -> None:
    assert "experimental" in load_target("a100-80gb").notes["tensorrt"]
    assert "TensorRT-LLM" in load_target("a100-80gb").notes["tensorrt"]


def test_devices_count_together() -> None:
    two = parse_profile("pair", VALID)
    assert two.available_bytes == 2 * 7 * (1 << 30)
    assert two.runtime_overhead_bytes == 1 << 30


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("kind", "tpu", "'gpu' or 'cpu'"),
        ("device_count", 0, "whole number above 0"),
        ("device_count", True, "whole number above 0"),
        ("memory_gib", "8", "above 0, in GiB"),
        ("memory_gib", -8.0, "above 0, in GiB"),
        ("memory_gib", float("inf"), "above 0, in GiB"),
        ("memory_gib", float("nan"), "above 0, in GiB"),
        ("reserved_gib", -1, "from 0, in GiB"),
        ("bandwidth_gb_s", 0, "above 0, in GB/s"),
        ("compute_capability", "sm86", "'8.6'"),
        ("tensor_types", ["f17"], "a list of f64"),
        ("tensor_types", [], "a list of f64"),
        ("preferred_schemes", ["q4_k_m"], "a list of scheme names"),
        ("preferred_schemes", {"gguf": "q4_k_m"}, "a list of scheme names"),
        ("preferred_schemes", {"exl2": ["q4"]}, "a table of gguf, onnx, tensorrt"),
        ("notes", {"gguf": ""}, "a table of gguf, onnx, tensorrt"),
        ("runtimes", {"vim": ["Q*"]}, "llama.cpp, onnxruntime, tensorrt-rtx"),
        ("runtimes", {"llama.cpp": []}, "llama.cpp, onnxruntime, tensorrt-rtx"),
        ("sources", {"memory_gib": ""}, "where its figure comes from"),
        ("description", "", "a sentence"),
    ],
)
def test_wrong_value_is_named(field: str, value: object, allowed: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_profile("mine", VALID | {field: value})
    assert field in caught.value.problem
    assert repr(value) in caught.value.problem
    assert allowed in caught.value.allowed


@pytest.mark.parametrize("field", sorted(set(VALID) - {"compute_capability"}))
def test_missing_field_is_named(field: str) -> None:
    fields = {name: value for name, value in VALID.items() if name != field}
    with pytest.raises(UsageError, match=f"lacks the field '{field}'"):
        parse_profile("mine", fields)


def test_unknown_field_is_named() -> None:
    with pytest.raises(UsageError, match="unknown field 'memory_gb'") as caught:
        parse_profile("mine", VALID | {"memory_gb": 8})
    assert "memory_gib" in caught.value.allowed


def test_fields_must_go_together() -> None:
    with pytest.raises(UsageError, match="leaves nothing"):
        parse_profile("mine", VALID | {"reserved_gib": 7.5})
    with pytest.raises(UsageError, match="compute_capability"):
        parse_profile("mine", VALID | {"kind": "cpu"})
    for field, value in (("preferred_schemes", ["int4-g64"]), ("notes", "slow")):
        with pytest.raises(UsageError, match="'onnx' has no runtime"):
            parse_profile("mine", VALID | {field: {"onnx": value}})
    sources = dict.fromkeys(set(SOURCED_FIELDS) - {"bandwidth_gb_s"}, "x")
    with pytest.raises(UsageError, match="sources lacks 'bandwidth_gb_s'"):
        parse_profile("mine", VALID | {"sources": sources})


def test_broken_toml_is_an_error_of_the_user(tmp_path) -> None:
    (tmp_path / "mine.toml").write_text("memory_gib = = 8")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_profile("mine", tmp_path / "mine.toml")


def test_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        load_target("rtx3060")
    assert "rtx3060-8gb" in caught.value.allowed
