"""The schema of profiles: every mistake in one is named, and a user's file is read as ours are."""

from pathlib import Path

import pytest

from tightfit.errors import UsageError
from tightfit.export.tensorrt.support import CARDS
from tightfit.targets.profile import (
    choose_target,
    load_target,
    parse_profile,
    read_target_file,
)
from tightfit.targets.profile_rules import (
    SOURCED_FIELDS,
    TENSORRT_RTX_CAPABILITIES,
    capability_number,
)

GIB = 1 << 30
PROFILES = Path(__file__).parents[2] / "targets" / "profiles"
VALID = {
    "description": "a card",
    "kind": "gpu",
    "device_count": 2,
    "memory_gib": 8,
    "reserved_gib": 1,
    "runtime_overhead_gib": 0.5,
    "bandwidth_gb_s": 100,
    "interconnect": "PCIe 4.0 x16",
    "interconnect_gb_s": 31.5,
    "compute_capability": "8.6",
    "tensor_types": ["f16"],
    "runtimes": {"llama.cpp": ["Q*", "F32"]},
    "sources": dict.fromkeys((*SOURCED_FIELDS, "interconnect_gb_s"), "a data sheet"),
}
ONE = {field: value for field, value in VALID.items() if not field.startswith("interconnect")} | {
    "device_count": 1
}


def test_one_device_and_all_of_them() -> None:
    two = parse_profile("pair", VALID)
    assert two.device_available_bytes == 7 * GIB
    assert two.available_bytes == 2 * 7 * GIB
    assert two.device_overhead_bytes == GIB // 2
    assert (two.node_count, two.unified_memory) == (1, False)
    nodes = parse_profile("nodes", VALID | {"device_count": 6, "node_count": 2})
    assert nodes.available_bytes == 6 * 7 * GIB


def test_capabilities_are_ordered_as_numbers() -> None:
    order = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]
    assert sorted({*order}, key=capability_number) == order


def test_engines_are_those_that_the_exporter_builds() -> None:
    assert set(TENSORRT_RTX_CAPABILITIES) == set(CARDS)


def test_fp4_is_refused_even_where_a_profile_allows_everything() -> None:
    anything = parse_profile(
        "any",
        ONE
        | {
            "compute_capability": "12.0",
            "tensor_types": ["fp8", "fp4"],
            "runtimes": {"llama.cpp": ["*"]},
        },
    )
    with pytest.raises(UsageError, match="writes no FP4 grid"):
        anything.check_fp4("llama.cpp", "nvfp4")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("kind", "tpu", "'gpu' or 'cpu'"),
        ("device_count", 0, "whole number above 0"),
        ("device_count", True, "whole number above 0"),
        ("device_count", 2.0, "whole number above 0"),
        ("device_count", 10**6, "at most 4096"),
        ("node_count", 0, "whole number above 0"),
        ("node_count", "2", "whole number above 0"),
        ("memory_gib", "8", "above 0, in GiB"),
        ("memory_gib", -8.0, "above 0, in GiB"),
        ("memory_gib", float("inf"), "above 0, in GiB"),
        ("memory_gib", float("nan"), "above 0, in GiB"),
        ("memory_gib", 10**400, "above 0, in GiB"),
        ("unified_memory", 1, "true or false"),
        ("reserved_gib", -1, "from 0, in GiB"),
        ("runtime_overhead_gib", None, "from 0, in GiB"),
        ("bandwidth_gb_s", 0, "above 0, in GB/s"),
        ("interconnect", " ", "text such as"),
        ("interconnect_gb_s", 0, "one direction"),
        ("interconnect_gb_s", "300", "one direction"),
        ("compute_capability", "sm86", "'8.6'"),
        ("compute_capability", "86", "'8.6'"),
        ("compute_capability", 8.6, "'8.6'"),
        ("tensor_types", ["f17"], "a list of f64"),
        ("tensor_types", [], "a list of f64"),
        ("notes", {"exl2": "fast"}, "a table of gguf, onnx, tensorrt"),
        ("notes", {"gguf": ""}, "a table of gguf, onnx, tensorrt"),
        ("runtimes", {"vim": ["Q*"]}, "llama.cpp, onnxruntime, tensorrt-rtx, vllm, tensorrt-llm"),
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
    assert "docs/targets.md" in caught.value.hint


@pytest.mark.parametrize("field", sorted(set(ONE) - {"compute_capability"}))
def test_missing_field_is_named(field: str) -> None:
    fields = {name: value for name, value in ONE.items() if name != field}
    with pytest.raises(UsageError, match=f"lacks the field '{field}'"):
        parse_profile("mine", fields)


def test_unknown_field_is_named() -> None:
    with pytest.raises(UsageError, match="unknown field 'memory_gb'") as caught:
        parse_profile("mine", VALID | {"memory_gb": 8})
    assert "memory_gib" in caught.value.allowed


CPU = {"kind": "cpu", "device_count": 1}
NO_CARD = {field: value for field, value in ONE.items() if field != "compute_capability"}


@pytest.mark.parametrize(
    ("fields", "problem", "allowed"),
    [
        (VALID | {"reserved_gib": 7.5}, "= 8 leaves nothing", "memory_gib = 8"),
        (ONE | CPU, "compute_capability = '8.6' does not go", "a cpu has none"),
        (NO_CARD, "compute_capability = None does not go", "a gpu has"),
        (NO_CARD | CPU | {"device_count": 2}, "device_count = 2", "one device"),
        (NO_CARD | CPU | {"unified_memory": True}, "unified_memory", "gpu shares"),
        (
            NO_CARD | CPU | {"runtimes": {"llama.cpp": ["Q*", "F32"], "tensorrt-rtx": ["F16"]}},
            "'tensorrt-rtx' beside kind = 'cpu'",
            "needs a gpu",
        ),
        (VALID | {"node_count": 3}, "node_count = 3 does not divide device_count = 2", "all nodes"),
        (ONE | {"interconnect": "PCIe"}, "interconnect = 'PCIe'", "one device has no"),
        (ONE | {"interconnect_gb_s": 9}, "interconnect_gb_s = 9", "one device has no"),
        (ONE | {"device_count": 2}, "interconnect is missing beside device_count = 2", "text such"),
        (
            {field: value for field, value in VALID.items() if field != "interconnect_gb_s"},
            "interconnect_gb_s is missing",
            "in GB/s",
        ),
        (VALID | {"tensor_types": ["f16", "fp8"]}, "'fp8' beside", "from compute capability 8.9"),
        (
            VALID | {"compute_capability": "9.0", "tensor_types": ["fp8", "fp4"]},
            "'fp4' beside compute_capability = '9.0'",
            "from compute capability 10.0",
        ),
        (
            VALID | {"compute_capability": "9.0", "runtimes": {"tensorrt-rtx": ["F16"]}},
            "'tensorrt-rtx' beside compute_capability = '9.0'",
            "8.0, 8.6, 8.9, 12.0",
        ),
        (
            VALID | {"runtimes": {"llama.cpp": ["Q*", "F32"], "vllm": ["int4-g*", "fp8-*"]}},
            "runtimes.vllm lists 'fp8-*', but tensor_types has no 'fp8'",
            "8.9",
        ),
        (VALID | {"runtimes": {"llama.cpp": ["*"]}}, "lists '*', but", "executed natively"),
        (VALID | {"runtimes": {"llama.cpp": ["Q8_0"]}}, "lacks F32", "add it"),
        (VALID | {"runtimes": {"llama.cpp": ["q4_k"]}}, "lists 'q4_k', which is no grid", "Q"),
        (
            ONE | {"sources": dict.fromkeys(set(SOURCED_FIELDS) - {"bandwidth_gb_s"}, "x")},
            "sources lacks 'bandwidth_gb_s'",
            "a source for each",
        ),
        (
            VALID | {"sources": dict.fromkeys(SOURCED_FIELDS, "x")},
            "sources lacks 'interconnect_gb_s'",
            "a source for each",
        ),
        (
            ONE | {"sources": dict.fromkeys((*SOURCED_FIELDS, "memory"), "x")},
            "sources has an unknown field 'memory'",
            "memory_gib",
        ),
    ],
)
def test_fields_must_go_together(fields: dict[str, object], problem: str, allowed: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_profile("mine", fields)
    assert caught.value.problem.startswith("profile 'mine'")
    assert problem in caught.value.problem
    assert allowed in caught.value.allowed


def test_a_note_may_say_what_to_use_in_place_of_a_format() -> None:
    made = parse_profile("mine", VALID | {"notes": {"tensorrt": "use another"}})
    assert made.notes == {"tensorrt": "use another"}


def test_a_file_of_the_user(tmp_path: Path) -> None:
    mine = tmp_path / "my-card.toml"
    mine.write_text((PROFILES / "rtx3090x2.toml").read_text())
    made, built_in = read_target_file(mine), load_target("rtx3090x2")
    assert made.name == "my-card"
    assert made.available_bytes == built_in.available_bytes
    assert choose_target(None, mine) == made
    # A byte order mark is not the user's fault.
    mine.write_bytes(b"\xef\xbb\xbf" + mine.read_bytes())
    assert read_target_file(mine) == made


def test_files_that_are_no_profile(tmp_path: Path) -> None:
    broken, latin = tmp_path / "broken.toml", tmp_path / "latin.toml"
    broken.write_text("memory_gib = = 8")
    latin.write_bytes('description = "für mich"'.encode("latin-1"))
    for path, problem in (
        (tmp_path / "none.toml", "cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (broken, "not valid TOML"),
        (latin, "not UTF-8: .* at byte 16"),
    ):
        with pytest.raises(UsageError, match=problem) as caught:
            read_target_file(path)
        assert path.stem in caught.value.problem


def test_a_file_may_not_take_the_name_of_a_target(tmp_path: Path) -> None:
    taken = tmp_path / "rtx3060-8gb.toml"
    taken.write_text((PROFILES / taken.name).read_text())
    with pytest.raises(UsageError, match="has the name of a target") as caught:
        read_target_file(taken)
    assert "my-rtx3060-8gb.toml" in caught.value.hint


def test_exactly_one_target_is_chosen(tmp_path: Path) -> None:
    assert choose_target("cpu-64gb", None).name == "cpu-64gb"
    with pytest.raises(UsageError, match="no target was given") as caught:
        choose_target(None, None)
    assert "cpu-64gb" in caught.value.allowed
    with pytest.raises(UsageError, match="name two machines"):
        choose_target("cpu-64gb", tmp_path / "mine.toml")


def test_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        load_target("rtx3060")
    assert "rtx3060-8gb" in caught.value.allowed
