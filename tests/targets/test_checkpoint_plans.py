"""Plans of Hugging Face checkpoints: bytes and memory by hand, choices and refusals."""

from dataclasses import replace

import pytest

from tightfit.calib.models import find_model
from tightfit.errors import DoesNotFitError, QuantizationError, UsageError
from tightfit.targets.allocation.budget import Budget
from tightfit.targets.checkpoint_memory import stored_bytes, tensor_parallel_devices
from tightfit.targets.formats import CHECKPOINT_FORMATS
from tightfit.targets.plan import Plan, make_plan
from tightfit.targets.profile import list_targets, load_target
from tightfit.targets.workload import CacheType

GIB = 1 << 30
QWEN_7B = {"hidden": 3584, "wide": 18944, "layers": 28, "vocabulary": 152064, "kv": 4 * 128}


def plan(model: str = "r1-distill-qwen-7b", target: str = "rtx4090-24gb", **options) -> Plan:
    known = find_model(model)
    assert known is not None
    return make_plan(known.dimensions, load_target(target), model=model, **options)


@pytest.mark.parametrize(
    ("format_", "grid", "expected"),
    [
        # 64 x 256: codes, float16 scales, zero points, and GPTQ's index of 4 bytes a column.
        ("gptq", "int4-g128-sym", 8192 + 64 * 2 * 2 + 64 * 2 // 2 + 256 * 4),
        ("awq", "int4-g64-asym", 8192 + 64 * 4 * 2 + 64 * 4 // 2),
        ("compressed-tensors", "int4-g128-sym", 8192 + 64 * 2 * 2),
        ("compressed-tensors", "int8-g32-asym", 16384 + 64 * 8 * 2 + 64 * 8),
        ("compressed-tensors", "fp8-e4m3-channel", 16384 + 64 * 4),
        ("compressed-tensors", "fp8-e4m3-block128", 16384 + 1 * 2 * 4),
        ("modelopt", "fp8-e4m3-tensor", 16384 + 4),
        ("gptq", "F16", 32768),
    ],
)
def test_bytes_of_a_matrix(format_: str, grid: str, expected: int) -> None:
    assert stored_bytes(grid, (64, 256), format_) == expected


def test_bytes_and_memory_of_a_model_by_hand() -> None:
    made = plan(format="gptq", scheme="int4-g128", context_tokens=4096)
    hidden, wide, kv = (QWEN_7B[name] for name in ("hidden", "wide", "kv"))
    shapes = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden)]
    shapes += [(wide, hidden), (wide, hidden), (hidden, wide)]
    linears = sum(o * i // 2 + o * (i // 128) * 5 // 2 + 4 * i for o, i in shapes)
    vectors = 2 * (2 * hidden + hidden + 2 * kv)
    blocks = QWEN_7B["layers"] * (linears + vectors)
    ends = 2 * (2 * QWEN_7B["vocabulary"] * hidden + hidden)
    assert made.chosen.file_bytes == blocks + ends
    (device,) = made.chosen.memory.devices
    assert device.weights_bytes == blocks + ends
    assert device.kv_cache_bytes == 2 * QWEN_7B["layers"] * kv * 2 * 4096
    assert device.compute_bytes == (
        2 * 2048 * (3 * wide + 4 * hidden) + 4 * 256 * QWEN_7B["vocabulary"]
    )


def test_several_devices_share_a_model() -> None:
    made = plan("r1-distill-llama-70b", "a100x4-80gb", format="gptq", scheme="int8-g128")
    assert len(made.chosen.memory.devices) == 4
    one = plan("r1-distill-llama-70b", "a100x2-80gb", format="gptq", scheme="int8-g128")
    assert len(one.chosen.memory.devices) == 2
    halved = (
        made.chosen.memory.devices[0].weights_bytes / one.chosen.memory.devices[0].weights_bytes
    )
    assert halved == pytest.approx(0.5, rel=1e-3)
    # 8 KV heads: two a device on four.
    (on_four, *_), (on_two, *_) = made.chosen.memory.devices, one.chosen.memory.devices
    assert on_two.kv_cache_bytes == 2 * on_four.kv_cache_bytes


@pytest.mark.parametrize(
    ("heads", "devices", "expected"),
    [(28, 8, 4), (40, 8, 8), (12, 2, 2), (25, 4, 1), (128, 16, 16)],
)
def test_devices_divide_the_heads(heads: int, devices: int, expected: int) -> None:
    assert tensor_parallel_devices(heads, devices) == expected


def test_r1_in_fp8_fits_eight_h100_only_without_its_own_size() -> None:
    """671 GB of FP8 leave no room on 8 x 80 GB; four bits do."""
    with pytest.raises(DoesNotFitError):
        plan("r1", "h100x8-80gb", format="compressed-tensors", scheme="fp8-block128")
    made = plan("r1", "h100x8-80gb", format="compressed-tensors", scheme="int4-g128")
    assert made.chosen.fits
    stored = made.storage
    assert stored["model.layers.5.self_attn.k_b_proj.weight"] == "F16"
    assert stored["model.layers.5.mlp.gate.weight"] == "F32"
    assert stored["model.layers.5.mlp.experts.*.up_proj.weight"] == "int4-g128-sym"
    assert stored["lm_head.weight"] == "F16"


@pytest.mark.parametrize("format_", CHECKPOINT_FORMATS)
@pytest.mark.parametrize("target", list_targets())
def test_auto_takes_what_fits_or_says_why_not(target: str, format_: str) -> None:
    runtime = "tensorrt-llm" if format_ == "modelopt" else "vllm"
    # RTX 5090's TensorRT-LLM executes FP8; every other target of a runtime some INT4.
    if runtime not in load_target(target).runtimes:
        with pytest.raises(UsageError, match="cannot be made for"):
            plan("r1-distill-qwen-1.5b", target, format=format_)
        return
    made = plan("r1-distill-qwen-1.5b", target, format=format_)
    assert made.chosen.fits
    least = min(item.predicted_nats for item in made.candidates if item.fits)
    assert made.chosen.predicted_nats == least
    assert made.mix is None


def test_a_limit_of_the_users_is_kept() -> None:
    made = plan(format="compressed-tensors", budget=Budget(bits_per_weight=6.2))
    assert made.chosen.scheme == "int4-g32"
    with pytest.raises(UsageError, match=r"--bpw 3 is too little"):
        plan(format="gptq", budget=Budget(bits_per_weight=3))


def test_an_fp8_cache_halves_it_where_cards_have_fp8() -> None:
    plain = plan(format="compressed-tensors", scheme="fp8-channel")
    small = plan(format="compressed-tensors", scheme="fp8-channel", cache_type=CacheType.FP8)
    assert plain.chosen.memory.kv_cache_bytes == 2 * small.chosen.memory.kv_cache_bytes
    for format_, target in (("gptq", "rtx4090-24gb"), ("compressed-tensors", "rtx3090-24gb")):
        with pytest.raises(UsageError, match="KV cache"):
            plan(target=target, format=format_, scheme="int4-g128", cache_type=CacheType.FP8)


def test_floats_beside_a_grid() -> None:
    storage = plan(format="compressed-tensors", scheme="fp8-channel").storage
    assert storage["model.embed_tokens.weight"] == storage["model.norm.weight"] == "BF16"
    storage = plan(format="awq", scheme="int4-g128-asym").storage
    assert storage["lm_head.weight"] == "F16"
    assert plan(format="modelopt", scheme="fp8-tensor").static_inputs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "gptq", "scheme": "f16"}, "quantizes nothing"),
        ({"format": "gptq", "scheme": "q4_k_m"}, "cannot hold q4_k_m"),
        ({"format": "gptq", "scheme": "int4-g128", "head": "int8-g128"}, "stay floats"),
        ({"format": "awq", "scheme": "int8-g128"}, "AWQ cannot hold"),
        ({"format": "gptq", "scheme": "int4-g128", "target": "cpu-16gb"}, "cannot be made for"),
        ({"format": "compressed-tensors", "scheme": "fp8", "target": "rtx3090-24gb"}, "fp8"),
    ],
)
def test_refusals(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(**options)


def test_a_width_that_a_group_does_not_divide() -> None:
    known = find_model("r1-distill-qwen-7b")
    assert known is not None
    odd = replace(known.dimensions, intermediate_size=18944 + 32)
    with pytest.raises(QuantizationError):
        make_plan(odd, load_target("rtx4090-24gb"), model="odd", format="gptq", scheme="int4-g128")
