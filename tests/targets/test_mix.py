"""`--scheme auto`: within its limits, to the last bytes, and better than every named scheme."""

from dataclasses import replace
from functools import cache

import pytest
from support import plan_by_hand as hand
from support import smollm2

from tightfit.calib.architecture import architecture_of
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.models import find_model
from tightfit.calib.shapes import tensor_shapes
from tightfit.errors import DoesNotFitError, UsageError
from tightfit.export.onnx.grids import check_storage
from tightfit.export.onnx.options import OnnxOptions
from tightfit.export.tensorrt.support import check_support
from tightfit.quant.registry import GRIDS
from tightfit.targets.allocation.budget import Budget
from tightfit.targets.formats import check_storable, executed_as
from tightfit.targets.mix import Mix, grid_choices
from tightfit.targets.plan import Plan, make_plan
from tightfit.targets.profile import Target, load_target
from tightfit.targets.workload import CacheType, Split

GIB = 1 << 30


def dimensions(model: str) -> ModelDimensions:
    known = find_model(model)
    assert known
    return known.dimensions


@cache
def plan(model: str, target: str, **options: object) -> Plan:
    return make_plan(dimensions(model), load_target(target), model=model, **options)  # type: ignore[arg-type]


def mix_of(made: Plan) -> Mix:
    assert made.mix is not None
    assert made.chosen is made.mix.candidate
    assert made.storage is made.mix.storage
    return made.mix


BINDING = [
    # model, target, format, context: more bytes would lower the loss
    ("r1-distill-qwen-7b", "rtx3060-8gb", "gguf", 8192),
    ("r1-distill-qwen-7b", "jetson-orin-nano-8gb", "gguf", 8192),
    ("r1-distill-llama-8b", "rtx3060-8gb", "gguf", 4096),
    ("r1-0528-qwen3-8b", "cpu-16gb", "gguf", 32768),
    ("r1-distill-qwen-14b", "rtx3060-12gb", "gguf", 16384),
    ("r1-distill-qwen-32b", "rtx4090-24gb", "gguf", 8192),
    ("r1-distill-llama-70b", "a100-40gb", "gguf", 8192),
    ("r1-distill-llama-8b", "rtx3060-8gb", "onnx", 8192),
    ("r1-distill-qwen-14b", "rtx4070ti-super-16gb", "onnx", 8192),
    ("r1-distill-qwen-32b", "rtx5090-32gb", "tensorrt", 8192),
]
SPLIT = [("r1-distill-llama-70b", "rtx3090x2"), ("r1", "a100x4-80gb"), ("r1", "a100x8-80gb")]
ROOMY = [
    ("r1-distill-qwen-1.5b", "rtx3060-8gb", "gguf", 8192),
    ("r1-distill-qwen-1.5b", "cpu-16gb", "onnx", 8192),
    ("r1-distill-qwen-7b", "a100-80gb", "tensorrt", 8192),
    ("r1", "a100x16-80gb", "gguf", 8192),
]


@pytest.mark.parametrize(("model", "target", "format_", "context"), BINDING)
def test_the_room_is_spent_and_not_exceeded(
    model: str, target: str, format_: str, context: int
) -> None:
    made = plan(model, target, format=format_, context_tokens=context)
    mix = mix_of(made)
    available = int(hand.MACHINES[target].available_gib * GIB)
    assert 0.99 * available < made.chosen.memory.total_bytes <= available
    beside = made.chosen.memory.total_bytes - made.chosen.memory.weights_bytes
    assert mix.budget_bytes == available - beside
    assert mix.used_bytes == made.chosen.memory.weights_bytes
    assert 0.99 * mix.budget_bytes <= mix.used_bytes <= mix.budget_bytes
    assert mix.binds
    assert made.chosen.fits
    assert made.chosen.max_context_tokens >= context


@pytest.mark.parametrize(("model", "target"), SPLIT)
def test_each_device_of_a_layer_split_is_filled(model: str, target: str) -> None:
    made = plan(model, target)
    mix, machine = mix_of(made), made.target
    room = machine.device_available_bytes
    assert room == int(hand.MACHINES[target].available_gib * GIB)
    assert mix.binds
    choices = grid_choices(made.setting, {})
    for device, use in enumerate(made.chosen.memory.devices):
        assert use.total_bytes <= room
        on_it = [name for name in choices if _device(name, made) == device]
        best = all(made.storage[name] == "Q8_0" for name in on_it)
        # Experts of a layer are 0.7 % of an A100 a bit: where only they are left, that may stay.
        assert best or use.total_bytes >= 0.99 * room
    assert mix.used_bytes == made.chosen.memory.weights_bytes <= mix.budget_bytes


def _device(name: str, made: Plan) -> int:
    layers, n_devices = made.setting.dimensions.n_layers, made.setting.n_devices
    if ".layers." in name:
        return int(name.split(".")[2]) * n_devices // (layers + 1)
    return 0 if "embed_tokens" in name else n_devices - 1


def test_a_tensor_split_is_filled() -> None:
    made = plan("r1-distill-llama-70b", "rtx3090x2", split=Split.TENSOR)
    room = int(23.15 * GIB)
    assert 0.99 * room <= made.chosen.memory.fullest_bytes <= room


@pytest.mark.parametrize(("model", "target", "format_", "context"), ROOMY)
def test_with_more_room_than_it_uses_nothing_binds(
    model: str, target: str, format_: str, context: int
) -> None:
    made = plan(model, target, format=format_, context_tokens=context)
    mix = mix_of(made)
    assert not mix.binds
    assert mix.used_bytes < 0.95 * mix.budget_bytes
    assert "would hold more" in made.reason
    if format_ == "gguf":
        # Nothing that auto takes is finer than Q8_0.
        assert set(made.storage.values()) == {"Q8_0", "F32"}
        assert made.chosen.file_bytes == hand.file_bytes(model, "q8_0")


ALL = [*BINDING, *ROOMY, *((model, target, "gguf", 8192) for model, target in SPLIT)]


@pytest.mark.parametrize(("model", "target", "format_", "context"), ALL)
def test_grids_are_executed_and_held(model: str, target: str, format_: str, context: int) -> None:
    made = plan(model, target, format=format_, context_tokens=context)
    machine = made.target
    assert list(made.storage) == list(
        tensor_shapes(made.setting.architecture, made.setting.dimensions)
    )
    for stored_as in set(made.storage.values()):
        check_storable(format_, stored_as)
        machine.check_grid(made.runtime, executed_as(format_, stored_as))
    _check_with_the_exporter(made, machine)
    for name, grids in grid_choices(made.setting, made.overrides).items():
        assert made.storage[name] in (*grids, "F16")
    routers = [kind for name, kind in made.storage.items() if name.endswith("mlp.gate.weight")]
    assert set(routers) <= {"F32"}


def _check_with_the_exporter(made: Plan, machine: Target) -> None:
    architecture = made.setting.architecture
    if made.format == "onnx":
        check_storage(made.storage, architecture, OnnxOptions(precision=made.precision))  # type: ignore[arg-type]
    if made.format == "tensorrt":
        grids = [kind for kind in made.storage.values() if kind in GRIDS]
        check_support(machine.compute_capability, grids)


@pytest.mark.parametrize(("model", "target", "format_", "context"), ALL)
def test_no_named_scheme_that_fits_is_better(
    model: str, target: str, format_: str, context: int
) -> None:
    made = plan(model, target, format=format_, context_tokens=context)
    named = [
        item
        for item in made.candidates
        # Floats lose nothing; auto leaves them out, for 8 bits lose next to nothing.
        if item.fits and item.scheme not in ("auto", "f32", "f16", "bf16")
    ]
    for item in named:
        if item.file_bytes <= made.chosen.file_bytes:
            assert made.chosen.predicted_nats <= item.predicted_nats * (1 + 1e-9)
    if named and format_ == "gguf":
        assert made.chosen.predicted_nats <= min(item.predicted_nats for item in named) * (1 + 1e-9)


def test_predicted_loss_is_the_sum_over_the_tensors() -> None:
    made = plan("r1-distill-qwen-7b", "rtx3060-8gb", format="gguf", context_tokens=8192)
    q4 = next(item for item in made.candidates if item.scheme == "q4_k_m")
    q8 = next(item for item in made.candidates if item.scheme == "q8_0")
    assert q8.predicted_nats < made.chosen.predicted_nats < q4.predicted_nats


@pytest.mark.parametrize("format_", ["gguf", "onnx", "tensorrt"])
@pytest.mark.parametrize("bits", [4.7, 5.6, 7.5])
def test_bits_per_weight(format_: str, bits: float) -> None:
    budget = Budget(bits_per_weight=bits)
    made = plan("r1-distill-llama-8b", "a100-80gb", format=format_, budget=budget)
    mix = mix_of(made)
    assert mix.budget_bytes == int(bits * hand.n_parameters("r1-distill-llama-8b") / 8)
    assert 0.99 * bits <= made.chosen.bits_per_weight <= bits
    assert mix.binds
    assert f"of --bpw {bits:g}" in made.reason


@pytest.mark.parametrize("format_", ["gguf", "onnx", "tensorrt"])
@pytest.mark.parametrize("gib", [4.6, 6.0])
def test_the_size_of_the_file(format_: str, gib: float) -> None:
    made = plan("r1-distill-llama-8b", "a100-80gb", format=format_, budget=Budget(file_gib=gib))
    assert 0.99 * gib * GIB <= made.chosen.file_bytes <= gib * GIB
    assert mix_of(made).budget_bytes == int(gib * GIB)
    assert f"of --budget-gib {gib:g}" in made.reason


def test_a_limit_does_not_exceed_the_room() -> None:
    """A file may take 20 GiB, but the card has 7.25."""
    for budget in (Budget(file_gib=20), Budget(bits_per_weight=8.4)):
        made = plan("r1-distill-llama-8b", "rtx3060-8gb", budget=budget)
        assert 0.99 * 7.25 * GIB <= made.chosen.memory.total_bytes <= 7.25 * GIB
        assert mix_of(made).binds
    both = plan("r1-distill-llama-70b", "rtx3090x2", budget=Budget(file_gib=60))
    assert 0.97 * 23.15 * GIB <= both.chosen.memory.fullest_bytes <= 23.15 * GIB


def test_more_bytes_lose_less() -> None:
    losses = [
        plan(
            "r1-distill-qwen-7b", "a100-80gb", budget=Budget(bits_per_weight=bits)
        ).chosen.predicted_nats
        for bits in (3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
    ]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("format_", ["gguf", "onnx"])
def test_overrides_are_kept(format_: str) -> None:
    names = {"gguf": ("q6_k", "Q6_K"), "onnx": ("int4-g32", "int4-g32-sym")}
    asked, stored_as = names[format_]
    made = plan(
        "r1-distill-qwen-14b",
        "rtx3060-12gb",
        format=format_,
        head=asked,
        embedding="f16",
        context_tokens=2048,
    )
    assert made.storage["lm_head.weight"] == stored_as
    assert made.storage["model.embed_tokens.weight"] == "F16"
    assert made.overrides == {"lm_head.weight": stored_as, "model.embed_tokens.weight": "F16"}
    available = int(11.25 * GIB)
    assert 0.99 * available <= made.chosen.memory.total_bytes <= available


@pytest.mark.parametrize(
    ("format_", "target"),
    [("gguf", "rtx3060-8gb"), ("onnx", "cpu-16gb"), ("tensorrt", "rtx3060-8gb")],
)
@pytest.mark.parametrize("bits", [6.0, 7.5])
def test_a_tied_model(format_: str, target: str, bits: float) -> None:
    """SmolLM2: the token table is the head, and 256 does not divide its width."""
    made = make_plan(
        smollm2.DIMENSIONS,
        load_target(target),
        model="smollm2",
        format=format_,
        budget=Budget(bits_per_weight=bits),
    )
    if format_ == "tensorrt":
        # Blocks of 64 divide 576, of 128 not; both divide the 1536 columns of down_proj.
        in_128 = {name for name, kind in made.storage.items() if kind == "int4-g128-sym"}
        assert all("down_proj" in name for name in in_128)
    assert "lm_head.weight" not in made.storage
    assert made.chosen.bits_per_weight <= bits
    if mix_of(made).binds:
        assert made.chosen.bits_per_weight >= 0.99 * bits
    if format_ == "gguf":
        assert made.storage["model.embed_tokens.weight"] in ("Q5_0", "Q5_1", "Q8_0", "Q4_1")
        # On a card a tied table is the head, so it counts there.
        assert made.chosen.memory.weights_bytes == made.chosen.file_bytes


def test_a_width_that_only_one_block_size_divides() -> None:
    architecture = architecture_of("qwen2")
    narrow = replace(
        dimensions("r1-distill-qwen-1.5b"), hidden_size=576, n_heads=9, n_kv_heads=3, head_dim=64
    )
    made = make_plan(narrow, load_target("rtx3060-8gb"), model="narrow", format="tensorrt")
    shapes = tensor_shapes(architecture, narrow)
    assert not any(
        kind == "int4-g128-sym" and shapes[name][-1] % 128 for name, kind in made.storage.items()
    )
    assert {"int4-g64-sym", "int8-channel-sym"} & set(made.storage.values())
    odd = replace(narrow, hidden_size=588, head_dim=98, n_heads=6, n_kv_heads=2)
    # No block of ggml's divides 588: only floats hold it. down_proj has rows of 8960.
    made = make_plan(odd, load_target("rtx3060-8gb"), model="odd")
    assert made.storage["model.layers.0.mlp.up_proj.weight"] == "F16"
    assert made.storage["model.layers.0.mlp.down_proj.weight"] == "Q8_0"
    assert made.storage["model.norm.weight"] == "F32"
    assert made.nearest == "f16"


def test_a_smaller_cache_leaves_room_for_bits() -> None:
    usual = plan("r1-distill-llama-8b", "rtx3060-8gb", format="gguf", context_tokens=4096)
    small = plan(
        "r1-distill-llama-8b", "rtx3060-8gb", context_tokens=4096, cache_type=CacheType.Q8_0
    )
    several = plan("r1-distill-llama-8b", "rtx3060-8gb", context_tokens=4096, n_sequences=2)
    assert small.chosen.predicted_nats < usual.chosen.predicted_nats
    assert usual.chosen.predicted_nats < several.chosen.predicted_nats


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["file_gib", "bits_per_weight"])
def test_a_budget_that_is_no_size(value: float, field: str) -> None:
    with pytest.raises(UsageError, match=f"{value:g} is not a size") as caught:
        plan("r1-distill-qwen-7b", "rtx3060-8gb", budget=Budget(**{field: value}))
    option = "--budget-gib" if field == "file_gib" else "--bpw"
    assert caught.value.problem.startswith(option)
    assert caught.value.allowed == "a number above 0"
    assert caught.value.hint == "leave it out"


def test_two_budgets_and_a_budget_of_a_named_scheme() -> None:
    two = Budget(file_gib=4, bits_per_weight=4)
    with pytest.raises(UsageError, match="limit the same bytes") as caught:
        plan("r1-distill-qwen-7b", "rtx3060-8gb", budget=two)
    assert caught.value.allowed == "one of the two"
    budget = Budget(bits_per_weight=4)
    with pytest.raises(UsageError, match="--bpw 4 is for --scheme auto") as caught:
        plan("r1-distill-qwen-7b", "rtx3060-8gb", budget=budget, scheme="q4_k_m")
    assert "q4_k_m" in caught.value.problem
    assert "honoured exactly" in caught.value.allowed
    assert "leave one of the two out" in caught.value.hint


@pytest.mark.parametrize("format_", ["gguf", "onnx", "tensorrt"])
@pytest.mark.parametrize("budget", [Budget(file_gib=0.5), Budget(bits_per_weight=1.0)])
def test_a_budget_below_the_smallest_grids(format_: str, budget: Budget) -> None:
    """What the error says would work does, and hardly less does not."""
    with pytest.raises(UsageError, match="less than the smallest mix") as caught:
        plan("r1-distill-qwen-7b", "a100-80gb", format=format_, budget=budget)
    assert caught.value.problem.startswith(budget.text)
    assert "smaller model" in caught.value.hint
    words = caught.value.allowed.replace(",", "").split()
    gib, bits = float(words[1]), float(words[5])
    own, least = ("file_gib", gib) if budget.file_gib else ("bits_per_weight", bits)
    made = plan("r1-distill-qwen-7b", "a100-80gb", format=format_, budget=Budget(**{own: least}))
    assert made.chosen.fits
    too_little = Budget(**{own: 0.995 * least})
    with pytest.raises(UsageError, match="less than the smallest mix"):
        plan("r1-distill-qwen-7b", "a100-80gb", format=format_, budget=too_little)


def test_a_budget_that_the_target_has_no_room_for() -> None:
    with pytest.raises(DoesNotFitError, match="auto needs at least") as caught:
        plan("r1-distill-qwen-32b", "rtx3060-8gb", budget=Budget(bits_per_weight=4.5))
    assert "--target " in caught.value.hint


@pytest.mark.parametrize(
    ("model", "target"),
    SPLIT,
)
def test_a_limit_above_the_room_of_uneven_devices_changes_nothing(model: str, target: str) -> None:
    limited = plan(model, target, budget=Budget(file_gib=5000.0))
    assert limited.storage == plan(model, target).storage
    assert mix_of(limited).budget_bytes == 5000 * GIB


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"format": "onnx", "head": "fp8"}, "not fp8"),
        ({"format": "tensorrt", "head": "fp8"}, "not fp8"),
        ({"format": "onnx", "embedding": "bf16"}, "float16 graph"),
    ],
)
def test_overrides_are_checked_like_a_named_scheme(options: dict[str, str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        plan("r1-distill-qwen-1.5b", "rtx3060-8gb", **options)


def test_a_target_of_one_grid() -> None:
    target = load_target("rtx3060-8gb")
    narrow = replace(target, runtimes={"llama.cpp": ("Q4_K", "F32")})
    made = make_plan(dimensions("r1-distill-qwen-1.5b"), narrow, model="1.5b")
    assert set(made.storage.values()) == {"Q4_K", "F32"}
    assert made.nearest == "q8_0"
