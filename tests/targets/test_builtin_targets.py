"""Every built-in target: sourced, and as its maker sells it; what it cannot execute is refused."""

from fnmatch import fnmatchcase

import pytest

from tightfit.errors import UsageError
from tightfit.export.tensorrt.support import CARDS
from tightfit.quant.registry import GRIDS
from tightfit.targets.formats import FORMATS
from tightfit.targets.profile import Target, list_targets, load_target
from tightfit.targets.profile_rules import SOURCED_FIELDS
from tightfit.targets.schemes.scheme import parse_scheme

FLOAT_TYPES = ("F32", "F16", "BF16")
FLOATS_OF_8 = ("fp8-e4m3-tensor", "fp8-e4m3-channel", "fp8-e4m3-block128")

HARDWARE = {
    # target: (devices, sold with GB, memory bus in bits, Gbit/s a pin, SM); from data sheets. HBM
    # and LPDDR rates are two transfers a clock: A100 1215 MHz (40 GB), 1512 (80 GB PCIe) and 1593
    # (SXM), H100 SXM 2619, Orin 3200. DDR4-3200 and DDR5-5600 have two channels of 64 bits.
    "rtx3060-8gb": (1, 8, 128, 15.0, "8.6"),
    "rtx3060-12gb": (1, 12, 192, 15.0, "8.6"),
    "rtx4060ti-16gb": (1, 16, 128, 18.0, "8.9"),
    "rtx4070ti-super-16gb": (1, 16, 256, 21.0, "8.9"),
    "rtx3090-24gb": (1, 24, 384, 19.5, "8.6"),
    "rtx3090x2": (2, 24, 384, 19.5, "8.6"),
    "rtx4090-24gb": (1, 24, 384, 21.0, "8.9"),
    "rtx5090-32gb": (1, 32, 512, 28.0, "12.0"),
    "l4-24gb": (1, 24, 192, 12.5, "8.9"),
    "l40s-48gb": (1, 48, 384, 18.0, "8.9"),
    "a100-40gb": (1, 40, 5120, 2 * 1.215, "8.0"),
    "a100-80gb": (1, 80, 5120, 2 * 1.512, "8.0"),
    "a100x2-80gb": (2, 80, 5120, 2 * 1.512, "8.0"),
    "a100x4-80gb": (4, 80, 5120, 2 * 1.593, "8.0"),
    "a100x8-80gb": (8, 80, 5120, 2 * 1.593, "8.0"),
    "a100x16-80gb": (16, 80, 5120, 2 * 1.593, "8.0"),
    "h100x8-80gb": (8, 80, 5120, 2 * 2.619, "9.0"),
    "jetson-orin-nano-8gb": (1, 8, 128, 2 * 3.2, "8.7"),
    "jetson-agx-orin-64gb": (1, 64, 256, 2 * 3.2, "8.7"),
    "cpu-16gb": (1, 16, 128, 3.2, None),
    "cpu-64gb": (1, 64, 128, 5.6, None),
}
COUNTED_MIB = {"l4-24gb": 23034, "l40s-48gb": 46068, "h100x8-80gb": 81559}
"""What nvidia-smi shows where that is less than the card is sold with."""
REPORTED_GIB = {
    # what PyTorch, CUDA or (Jetson) Linux said was there; the profiles cite the reports
    "rtx3060-8gb": 7.78,
    "rtx3060-12gb": 11.75,
    "rtx4060ti-16gb": 15.55,
    "rtx4070ti-super-16gb": 15.55,
    "rtx3090-24gb": 23.68,
    "rtx4090-24gb": 23.64,
    "rtx5090-32gb": 31.36,
    "l4-24gb": 22.03,
    "l40s-48gb": 44.40,
    "a100-40gb": 40441 / 1024,
    **dict.fromkeys((f"a100{nodes}-80gb" for nodes in ("", "x2", "x4", "x8", "x16")), 79.15),
    "h100x8-80gb": 79.11,
    "jetson-orin-nano-8gb": 6.6,
    "jetson-agx-orin-64gb": 61.4 - (7.3 - 6.6),
}
MULTIPROCESSORS = {
    "rtx3060": 28,
    "rtx4060ti": 34,
    "rtx4070ti": 66,
    "rtx3090": 82,
    "rtx4090": 128,
    "rtx5090": 170,
    "l4": 58,
    "l40s": 142,
    **dict.fromkeys(("a100", "a100x2", "a100x4", "a100x8", "a100x16"), 108),
    "h100x8": 132,
    "jetson": 16,
}
LINKS_GB_S = {
    # lanes or links and what one of them carries in one direction
    "rtx3090x2": 8 * 16 / 8 * 128 / 130,
    "a100x2-80gb": 12 * 25,
    "a100x4-80gb": 12 * 25 / 3,
    "a100x8-80gb": 12 * 25,
    "a100x16-80gb": 12 * 25,
    "h100x8-80gb": 18 * 25,
}


@pytest.fixture(params=list_targets())
def target(request: pytest.FixtureRequest) -> Target:
    return load_target(request.param)


def test_every_target_is_there() -> None:
    assert set(list_targets()) == set(HARDWARE)


def test_figures_are_those_of_the_data_sheets(target: Target) -> None:
    devices, sold_gb, bus_bits, gbit_s, capability = HARDWARE[target.name]
    assert target.device_count == devices
    assert target.compute_capability == capability
    assert target.kind == ("cpu" if capability is None else "gpu")
    counted_gib = COUNTED_MIB.get(target.name, sold_gb * 1024) / 1024
    assert counted_gib - 0.01 < target.memory_gib <= counted_gib
    # Makers round: 2.619 x 2 x 5120 / 8 = 3352 is sold as 3.35 TB/s.
    assert target.bandwidth_gb_s == pytest.approx(bus_bits * gbit_s / 8, rel=1e-3)
    assert target.unified_memory == target.name.startswith("jetson")
    assert target.node_count == (2 if target.name == "a100x16-80gb" else 1)


def test_reserves_leave_what_was_reported(target: Target) -> None:
    if target.kind == "cpu":
        assert target.reserved_gib == 4
        return
    desktop_gib = 0.5 if ", a display attached" in target.description else 0
    counted_gib = COUNTED_MIB.get(target.name, HARDWARE[target.name][1] * 1024) / 1024
    taken_gib = counted_gib - REPORTED_GIB[target.name.replace("3090x2", "3090-24gb")] + desktop_gib
    assert -0.01 < target.reserved_gib - taken_gib < 0.06


def test_the_context_of_more_multiprocessors_is_larger(target: Target) -> None:
    """From 0.3 GiB at 28 of them to 0.6 at 170; a unified memory holds the libraries, too."""
    if target.kind == "cpu":
        assert target.runtime_overhead_gib == 0.1
        return
    n_multiprocessors = MULTIPROCESSORS[target.name.split("-")[0].replace("3090x2", "3090")]
    linear_gib = 0.3 + 0.3 * (max(n_multiprocessors, 28) - 28) / (170 - 28)
    assert target.runtime_overhead_gib == pytest.approx(linear_gib, abs=0.04)


def test_interconnects_are_lanes_times_rate(target: Target) -> None:
    expected = LINKS_GB_S.get(target.name)
    if expected is None:
        assert (target.interconnect, target.interconnect_gb_s) == (None, None)
    else:
        assert target.interconnect_gb_s == pytest.approx(expected, rel=1e-3)


def test_everything_has_a_source(target: Target) -> None:
    fields = {*SOURCED_FIELDS, "tensor_types", "runtimes"}
    fields |= {"compute_capability"} if target.kind == "gpu" else set()
    fields |= {"interconnect_gb_s"} if target.device_count > 1 else set()
    assert set(target.sources) == fields
    # A source is a name with a number in it, or says that something is left out.
    assert all(len(text) > 15 for text in target.sources.values())


def test_grid_patterns_name_grids_that_exist(target: Target) -> None:
    for runtime, patterns in target.runtimes.items():
        for pattern in patterns:
            known = [grid for grid in (*GRIDS, *FLOAT_TYPES) if fnmatchcase(grid, pattern)]
            assert known, f"{target.name}: {runtime} executes nothing called {pattern}"


def test_fp8_is_where_tensor_cores_have_it(target: Target) -> None:
    """Ada, Hopper and Blackwell."""
    assert ("fp8" in target.tensor_types) == (target.compute_capability in ("8.9", "9.0", "12.0"))
    executes_fp8 = any(
        target.executes(runtime, grid) for runtime in target.runtimes for grid in FLOATS_OF_8
    )
    assert executes_fp8 == ("fp8" in target.tensor_types or target.kind == "cpu")


def test_fp4_is_blackwells_only(target: Target) -> None:
    assert ("fp4" in target.tensor_types) == (target.compute_capability == "12.0")


def test_tensorrt_takes_only_what_it_can_build(target: Target) -> None:
    integers = {"int4-g64-sym", "int4-g128-sym", "int8-channel-sym"}
    floats = {"fp8-e4m3-tensor", "fp8-e4m3-channel"}
    executed = {grid for grid in GRIDS if target.executes("tensorrt-rtx", grid)}
    nodes = {name for name in HARDWARE if name.startswith(("a100x", "h100x"))}
    if target.compute_capability in CARDS and target.name not in nodes:
        new = target.compute_capability in ("8.9", "12.0")
        assert executed == (integers | floats if new else integers)
    else:
        assert not executed
        assert "tensorrt-rtx" not in target.runtimes


def test_tensorrt_llm_is_as_its_hardware_matrix() -> None:
    """Ampere: W4A16 only; Ada: FP8 per tensor; SM 120: FP8 per tensor only; Hopper: all."""
    of = {
        name: {
            grid
            for grid in ("int4-g128-sym", *FLOATS_OF_8)
            if load_target(name).executes("tensorrt-llm", grid)
        }
        for name in ("a100-80gb", "rtx4090-24gb", "rtx5090-32gb", "h100x8-80gb")
    }
    assert of == {
        "a100-80gb": {"int4-g128-sym"},
        "rtx4090-24gb": {"int4-g128-sym", "fp8-e4m3-tensor"},
        "rtx5090-32gb": {"fp8-e4m3-tensor"},
        "h100x8-80gb": {"int4-g128-sym", *FLOATS_OF_8},
    }


def test_vllm_runs_gptq_and_awq_on_cards() -> None:
    a100 = load_target("a100x8-80gb")
    for grid in ("int4-g128-sym", "int4-g128-asym", "int8-g32-sym", "int8-channel-sym", "BF16"):
        assert a100.executes("vllm", grid)
    for grid in ("int8-g128-asym", "int3-g128-sym", "int2-g32-sym", "Q4_K"):
        assert not a100.executes("vllm", grid)
    assert not load_target("cpu-64gb").executes("vllm", "int4-g128-sym")


def test_what_has_no_engine_says_what_to_use(target: Target) -> None:
    if target.kind == "gpu" and "tensorrt-rtx" not in target.runtimes:
        note = target.notes["tensorrt"]
        assert "tightfit build-engine" in note if target.unified_memory else "TensorRT-LLM" in note
    if target.device_count > 1:
        assert "one of the cards" in target.notes["onnx"]


def test_every_format_of_a_target_has_4_and_8_bits(target: Target) -> None:
    """The allocator must have a choice, and a width of 576, which 128 does not divide, a grid."""
    usual = {
        "llama.cpp": ("Q4_K", "Q6_K", "Q8_0", "IQ4_NL"),
        "onnxruntime": ("int4-g64-sym", "int4-g128-sym", "int8-g128-sym"),
        "tensorrt-rtx": ("int4-g64-sym", "int4-g128-sym", "int8-channel-sym"),
    }
    for runtime in set(target.runtimes) & set(usual):
        assert all(target.executes(runtime, grid) for grid in usual[runtime])


def test_engines_for_the_a100_come_with_a_note() -> None:
    for name in ("a100-40gb", "a100-80gb"):
        assert "experimental" in load_target(name).notes["tensorrt"]
        assert "TensorRT-LLM" in load_target(name).notes["tensorrt"]


@pytest.mark.parametrize(
    ("name", "runtime", "grid", "reason", "nearest"),
    [
        ("rtx3060-8gb", "onnxruntime", "fp8-e4m3-channel", "capability 8.6; fp8", "int8-g128"),
        ("rtx3060-8gb", "tensorrt-rtx", "fp8-e4m3-tensor", "not fp8", "int8-channel"),
        ("a100x8-80gb", "vllm", "fp8-e4m3-block128", "capability 8.0; fp8 needs 8.9", "int8-g128"),
        ("a100x8-80gb", "tensorrt-llm", "fp8-e4m3-block128", "not fp8", "int4-g128"),
        ("a100-80gb", "llama.cpp", "fp8-e4m3-channel", "not fp8", "q8_0"),
        ("jetson-agx-orin-64gb", "onnxruntime", "fp8-e4m3-channel", "8.7; fp8", "int8-g128"),
        ("rtx4090-24gb", "llama.cpp", "fp8-e4m3-channel", "no kernel", "q8_0"),
        ("rtx4090-24gb", "onnxruntime", "nvfp4", "8.9; fp4 needs 10.0", "int4-g32"),
        ("h100x8-80gb", "vllm", "mxfp4", "9.0; fp4 needs 10.0), and tightfit writes", "int4-g32"),
        ("rtx3060-8gb", "llama.cpp", "mxfp4", "writes no FP4", "q4_k_m"),
        ("rtx5090-32gb", "tensorrt-rtx", "nvfp4", "tightfit writes no FP4 grid", "int4-g64"),
        ("rtx5090-32gb", "tensorrt-llm", "nvfp4", "tightfit writes no FP4 grid", "fp8-tensor"),
        ("cpu-64gb", "llama.cpp", "nvfp4", "tightfit writes no FP4 grid", "q4_k_m"),
    ],
)
def test_narrow_floats_are_refused_with_the_nearest(
    name: str, runtime: str, grid: str, reason: str, nearest: str
) -> None:
    target = load_target(name)
    with pytest.raises(UsageError) as caught:
        target.check_grid(runtime, grid)
    assert f"{name} cannot execute the grid {grid} in {runtime}" in caught.value.problem
    assert reason in caught.value.problem
    assert f"--scheme {nearest};" in caught.value.hint
    for kind in FORMATS.values():
        if kind.runtime == runtime and kind.name != "awq":
            base = parse_scheme(nearest, format=kind.name).base
            target.check_grid(runtime, base if isinstance(base, str) else base.default.name)


def test_other_grids_are_refused_with_who_executes_them() -> None:
    a100 = load_target("a100-80gb")
    with pytest.raises(UsageError, match="onnxruntime has no kernel") as caught:
        a100.check_grid("onnxruntime", "Q4_K")
    assert caught.value.hint == "runtimes that execute Q4_K here: llama.cpp"
    with pytest.raises(UsageError, match="tensorrt-rtx is not a runtime of this target"):
        load_target("cpu-16gb").check_grid("tensorrt-rtx", "int4-g128-sym")
    a100.check_grid("llama.cpp", "Q4_K")


@pytest.mark.parametrize("name", ["fp4", "NVFP4", "mxfp4", "gptq-nvfp4"])
def test_fp4_is_refused_as_a_scheme(target: Target, name: str) -> None:
    with pytest.raises(UsageError, match="writes no FP4 grid"):
        target.check_fp4("llama.cpp", name)


def test_other_schemes_pass() -> None:
    for name in ("fp8", "gptq-int4-g128", "q4_0", "f16"):
        load_target("rtx3060-8gb").check_fp4("onnxruntime", name)
