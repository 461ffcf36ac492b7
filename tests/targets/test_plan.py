"""Plans against arithmetic done again by hand (`support.plan_by_hand`), and what is refused."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from support import plan_by_hand as hand

from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.models import MODELS, find_model
from tightfit.errors import DoesNotFitError, QuantizationError, UsageError
from tightfit.quant.registry import GRIDS
from tightfit.targets.allocation.budget import Budget
from tightfit.targets.allocation.prior import prior_sensitivity
from tightfit.targets.allocation.sensitivity import Sensitivity
from tightfit.targets.candidates import Candidate, list_candidates, parse_schemes
from tightfit.targets.formats import FORMATS, find_format
from tightfit.targets.plan import Plan, checked_context, make_plan, refine_plan
from tightfit.targets.profile import load_target
from tightfit.targets.setting import Setting
from tightfit.targets.sizes import model_sizes
from tightfit.targets.workload import CacheType, Split, Workload

GIB = 1 << 30


def dimensions(model: str) -> ModelDimensions:
    known = find_model(model)
    assert known
    return known.dimensions


def plan(model: str, target: str, **options: object) -> Plan:
    return make_plan(dimensions(model), load_target(target), model=model, **options)  # type: ignore[arg-type]


def candidates(
    model: str, target: str, context: int, names: Sequence[str] = tuple(hand.FILE_TYPES)
) -> dict[str, Candidate]:
    gguf = find_format("gguf")
    setting = Setting(
        dimensions=dimensions(model),
        target=load_target(target),
        format=gguf,
        precision=None,
        workload=Workload(context_tokens=context),
    )
    prior = prior_sensitivity(setting.architecture, setting.dimensions)
    schemes = parse_schemes(names, gguf)
    found = list_candidates(model_sizes(setting), schemes, prior)
    return {candidate.scheme: candidate for candidate in found}


@pytest.mark.parametrize("target", hand.MACHINES)
@pytest.mark.parametrize("model", hand.MODELS)
def test_every_figure_by_hand(model: str, target: str) -> None:
    # Every other file type and one of two contexts in turn; 16000 tokens are padded to 16128.
    turn = (list(hand.MODELS).index(model) + list(hand.MACHINES).index(target)) % 2
    names, context = list(hand.FILE_TYPES)[turn::2], (8192, 16000)[turn]
    found = candidates(model, target, context, names)
    assert list(found) == names
    for scheme, candidate in found.items():
        use = hand.use(model, scheme, target, context)
        devices = candidate.memory.devices
        assert tuple(device.weights_bytes for device in devices) == use.weights
        assert tuple(device.kv_cache_bytes for device in devices) == use.kv_cache
        assert tuple(device.compute_bytes for device in devices) == use.compute
        assert {device.runtime_bytes for device in devices} == {use.runtime}
        assert candidate.memory.total_bytes == sum(use.totals)
        assert candidate.memory.fullest_bytes == max(use.totals)
        assert candidate.fits == use.fits(target)
        assert candidate.file_bytes == hand.file_bytes(model, scheme)
        bits = 8 * hand.file_bytes(model, scheme) / hand.n_parameters(model)
        assert candidate.bits_per_weight == pytest.approx(bits, rel=1e-12)
        speed = hand.tokens_per_s(model, scheme, target, context)
        assert candidate.max_tokens_per_s == pytest.approx(speed, rel=1e-9)


LONGEST = [
    *((model, target) for model in hand.MODELS for target in ("rtx3060-8gb", "cpu-64gb")),
    *((model, "rtx3090x2") for model in hand.MODELS),
    ("r1", "a100x8-80gb"),
    ("r1", "a100x16-80gb"),
]


@pytest.mark.parametrize(("model", "target"), LONGEST)
def test_longest_context_is_the_last_that_fits(model: str, target: str) -> None:
    for scheme, candidate in candidates(model, target, 256).items():
        assert candidate.max_context_tokens == hand.longest_context(model, scheme, target)


def test_by_hand_is_the_registry() -> None:
    counted = {model.name: model.n_parameters for model in MODELS.values()}
    assert len(counted) == 10
    assert {model: hand.n_parameters(model) for model in hand.MODELS} == {
        model: counted[model] for model in hand.MODELS
    }


@pytest.mark.parametrize(
    ("model", "scheme", "bpw"),
    [  # what llama.cpp prints as BPW for these sizes
        ("r1-distill-llama-8b", "q4_k_m", 4.89),
        ("r1-distill-qwen-7b", "q4_k_m", 4.91),
        ("r1-distill-llama-70b", "q4_k_m", 4.82),
        ("r1-distill-llama-8b", "q8_0", 8.50),
        ("r1-distill-llama-8b", "q6_k", 6.56),
    ],
)
def test_bits_per_weight_are_those_of_llama_cpp(model: str, scheme: str, bpw: float) -> None:
    found = candidates(model, "a100-80gb", 8192)[scheme]
    assert found.bits_per_weight == pytest.approx(bpw, abs=0.005)


def test_sequences_and_cache_types() -> None:
    """Each sequence has a cache of its own; Q8_0 takes 34 bytes where F16 takes 64."""
    one = plan("r1-distill-llama-8b", "a100-80gb", scheme="q4_k_m").chosen
    cached = 32 * 2 * 8 * 128 * 2 * 8192
    assert one.memory.kv_cache_bytes == cached
    four = plan("r1-distill-llama-8b", "a100-80gb", scheme="q4_k_m", n_sequences=4).chosen
    assert four.memory.kv_cache_bytes == 4 * cached
    assert four.memory.compute_bytes == one.memory.compute_bytes
    assert four.max_tokens_per_s == one.max_tokens_per_s
    narrow = {"cache_type": CacheType.Q8_0, "scheme": "q4_k_m"}
    small = plan("r1-distill-llama-8b", "a100-80gb", **narrow).chosen
    assert small.memory.kv_cache_bytes == cached * 34 // 64
    weights = sum(hand.use("r1-distill-llama-8b", "q4_k_m", "a100-80gb", 8192).weights)
    assert small.max_tokens_per_s == pytest.approx(1935e9 / (weights + cached * 34 / 64), rel=1e-4)


def test_a_tensor_split_by_hand() -> None:
    """Half of each matrix and of the heads on both, vectors and the whole workspace on each."""
    options = {"scheme": "q4_k_m", "split": Split.TENSOR}
    made = plan("r1-distill-llama-70b", "rtx3090x2", **options)
    first, second = made.chosen.memory.devices
    assert first == second
    sizes = hand.MODELS["r1-distill-llama-70b"]
    vectors = 4 * ((2 * sizes.layers + 1) * sizes.hidden + 64)
    both = sum(hand.use("r1-distill-llama-70b", "q4_k_m", "rtx3090x2", 8192).weights)
    assert first.weights_bytes == (both - vectors) // 2 + vectors
    assert first.kv_cache_bytes == 80 * 2 * 8 * 128 * 2 * 8192 // 2
    assert first.compute_bytes == 4 * 512 * (4 * 8192 + 128256) + 2 * 512 * 8192
    read = both + 80 * 2 * 8 * 128 * 2 * 8192
    assert made.chosen.max_tokens_per_s == pytest.approx(2 * 936e9 / read, rel=1e-3)


def test_a_named_scheme_is_taken_or_refused() -> None:
    needed = sum(hand.use("r1-distill-llama-8b", "q8_0", "rtx3060-8gb", 8192).totals)
    with pytest.raises(DoesNotFitError) as caught:
        plan("r1-distill-llama-8b", "rtx3060-8gb", scheme="q8_0")
    assert caught.value.exit_status == 4
    assert f"q8_0 needs {needed / GIB:.2f} GiB" in caught.value.problem
    assert caught.value.allowed == "rtx3060-8gb has 7.25 GiB for a model"
    made = plan("r1-distill-llama-8b", "a100-80gb", scheme="q8_0")
    assert (made.chosen.scheme, made.nearest, made.mix) == ("q8_0", "q8_0", None)
    assert made.chosen.fits
    assert made.reason.startswith("q8_0 was asked for and fits: it takes ")
    assert "Larger ones that fit too: " in made.reason
    assert "f16" in made.reason.partition("Larger")[2]
    assert "q6_k" not in made.reason


def test_a_plan_knows_its_setting() -> None:
    made = plan(
        "r1-distill-qwen-7b",
        "rtx3090x2",
        scheme="q4_k_m",
        context_tokens=20000,
        n_sequences=2,
        cache_type=CacheType.Q8_0,
        split=Split.TENSOR,
        head="q8_0",
    )
    assert made.setting.workload == Workload(
        context_tokens=20000, n_sequences=2, cache_type=CacheType.Q8_0, split=Split.TENSOR
    )
    assert (made.model, made.target.name) == ("r1-distill-qwen-7b", "rtx3090x2")
    assert (made.format, made.runtime, made.precision) == ("gguf", "llama.cpp", None)
    assert made.context_tokens == 20000
    assert made.overrides == {"lm_head.weight": "Q8_0"}
    assert made.storage["lm_head.weight"] == "Q8_0"
    assert made.storage["model.layers.5.mlp.up_proj.weight"] == "Q4_K"
    assert made.budget == Budget()


def offered(hint: str, option: str) -> str:
    """What the hint says to give to an option."""
    return hint.partition(f"{option} ")[2].partition(";")[0]


def test_refusal_says_what_would_fit() -> None:
    asked = ("r1-distill-llama-8b", "rtx3060-8gb")
    with pytest.raises(DoesNotFitError) as caught:
        plan(*asked, scheme="q8_0", context_tokens=16384)
    hint = caught.value.hint
    assert plan(*asked, context_tokens=16384).chosen.fits
    assert "--scheme auto;" in hint
    # What is offered must itself be accepted.
    smaller = hint.partition("--scheme auto; --scheme ")[2].partition(";")[0]
    assert plan(*asked, scheme=smaller, context_tokens=16384).chosen.fits
    targets = offered(hint, "--target").split(" or ")
    assert targets[0] == "rtx3060-12gb"
    assert len(targets) == 4
    for target in targets:
        assert plan(asked[0], target, scheme="q8_0", context_tokens=16384).chosen.fits
    assert "another model: r1-distill-qwen-1.5b, r1-distill-qwen-7b" in hint


def test_refusal_offers_the_longest_context_that_fits() -> None:
    asked, q4 = ("r1-distill-llama-8b", "rtx3060-8gb"), {"scheme": "q4_k_m"}
    with pytest.raises(DoesNotFitError) as caught:
        plan(*asked, context_tokens=65536, **q4)
    context = int(offered(caught.value.hint, "--context"))
    assert context == hand.longest_context("r1-distill-llama-8b", "q4_k_m", "rtx3060-8gb")
    assert plan(*asked, context_tokens=context, **q4).chosen.fits
    with pytest.raises(DoesNotFitError):
        plan(*asked, context_tokens=context + 1, **q4)


def test_refusal_offers_a_smaller_cache_and_fewer_sequences() -> None:
    asked = ("r1-distill-llama-8b", "rtx3060-8gb")
    options = {"scheme": "q4_k_m", "context_tokens": 8192, "n_sequences": 3}
    with pytest.raises(DoesNotFitError) as caught:
        plan(*asked, **options)
    assert "--kv-cache q8_0;" in caught.value.hint
    assert "--batch 1;" in caught.value.hint
    assert plan(*asked, **options | {"cache_type": CacheType.Q8_0}).chosen.fits
    assert plan(*asked, **options | {"n_sequences": 1}).chosen.fits


def test_what_no_mix_fits_is_refused_with_bigger_targets() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        plan("r1", "a100-80gb")
    assert "auto needs at least" in caught.value.problem
    assert offered(caught.value.hint, "--target").split(" or ")[0] == "a100x4-80gb"
    assert plan("r1", "a100x4-80gb").chosen.fits


def test_refusal_names_the_device_that_is_full() -> None:
    """Together two cards have the room; the first one holds a layer more than it."""
    first, last = hand.use("r1-distill-llama-70b", "q4_k_m", "rtx3090x2", 17664).totals
    room = int(23.15 * GIB)
    assert first + last <= 2 * room < 2 * max(first, last)
    with pytest.raises(DoesNotFitError) as caught:
        plan("r1-distill-llama-70b", "rtx3090x2", scheme="q4_k_m", context_tokens=17664)
    assert f"would hold {max(first, last) / GIB:.2f} GiB, and one has 23.15" in caught.value.allowed


@pytest.mark.parametrize("context", [0, -1, 131073])
@pytest.mark.parametrize("scheme", ["auto", "q4_k_m"])
def test_context_beyond_the_model(context: int, scheme: str) -> None:
    with pytest.raises(UsageError, match=f"context of {context} tokens") as caught:
        plan("r1-distill-qwen-7b", "a100-80gb", context_tokens=context, scheme=scheme)
    assert caught.value.allowed == "1 to 131072 tokens"
    assert "leave --context out" in caught.value.hint


def test_default_context_is_never_beyond_the_model() -> None:
    short = replace(dimensions("r1-distill-qwen-7b"), max_position_embeddings=1000)
    assert checked_context(short, None) == 1000
    made = make_plan(short, load_target("rtx3060-8gb"), model="short", scheme="q4_k_m")
    assert made.context_tokens == 1000
    assert made.chosen.max_context_tokens == 1000


def test_grid_that_the_target_cannot_execute() -> None:
    with pytest.raises(UsageError, match="not fp8") as caught:
        plan("r1-distill-qwen-7b", "rtx3060-8gb", scheme="fp8-e4m3-channel", format="onnx")
    assert "8.6" in caught.value.problem
    assert "--scheme int8-g128" in caught.value.hint
    with pytest.raises(UsageError, match="GGUF cannot hold") as caught:
        plan("r1-distill-qwen-7b", "rtx4090-24gb", scheme="fp8")
    assert "onnx, tensorrt" in caught.value.hint
    with pytest.raises(UsageError, match="not a scheme of GGUF"):
        plan("r1-distill-qwen-7b", "rtx3060-8gb", scheme="q9_z")


@pytest.mark.parametrize("options", [{"scheme": "nvfp4"}, {"head": "mxfp4"}, {"embedding": "fp4"}])
@pytest.mark.parametrize("format_", FORMATS)
def test_fp4_is_refused_with_the_reason(options: dict[str, str], format_: str) -> None:
    with pytest.raises(UsageError, match=r"8\.6; fp4 needs 10\.0") as caught:
        plan("r1-distill-qwen-7b", "rtx3060-8gb", format=format_, **options)
    nearest = offered(caught.value.hint, "--scheme")
    assert plan("r1-distill-qwen-7b", "rtx3060-12gb", format=format_, scheme=nearest).chosen.fits
    with pytest.raises(UsageError, match="tightfit writes no FP4 grid"):
        plan("r1-distill-qwen-7b", "rtx5090-32gb", format=format_, **options)


def test_one_scheme_for_three_formats_stores_the_same() -> None:
    plans = [
        plan("r1-distill-qwen-7b", "rtx3060-8gb", scheme="gptq-int4-g128", format=format_)
        for format_ in ("gguf", "onnx", "tensorrt")
    ]
    assert [made.format for made in plans] == ["gguf", "onnx", "tensorrt"]
    assert [made.runtime for made in plans] == ["llama.cpp", "onnxruntime", "tensorrt-rtx"]
    assert [made.precision for made in plans] == [None, "float16", "float16"]
    assert plans[0].storage == plans[1].storage == plans[2].storage
    assert all(made.method == "gptq" and made.nearest is None for made in plans)
    assert all(made.chosen.scheme == "gptq-int4-g128" for made in plans)


def test_candidates_of_a_format() -> None:
    def names(target: str, **options: str) -> list[str]:
        made = plan("r1-distill-qwen-1.5b", target, format="onnx", **options)
        return [item.scheme for item in made.candidates if item.scheme != "auto"]

    integers = [*(f"int8-g{group}" for group in (32, 64, 128))]
    integers += [f"int4-g{group}" for group in (32, 64, 128)]
    assert names("a100-80gb") == ["f16", *integers]
    assert {"f32", "bf16", "f16", "fp8-channel"} < set(names("cpu-16gb"))
    asked = names("a100-80gb", scheme="gptq-int4-g64")
    assert "gptq-int4-g64" in asked
    assert "int4-g64" not in asked


def test_an_engine_for_the_a100_is_called_experimental() -> None:
    reason = plan("r1-distill-qwen-7b", "a100-80gb", format="tensorrt").reason
    assert "experimental" in reason
    assert "TensorRT-LLM" in reason
    assert "experimental" not in plan("r1-distill-qwen-7b", "a100-80gb", format="onnx").reason


@pytest.mark.parametrize("scheme", ["f32", "bf16"])
def test_a_float16_graph_keeps_only_its_own_floats(scheme: str) -> None:
    with pytest.raises(UsageError, match="a float16 graph cannot") as caught:
        plan("r1-distill-qwen-1.5b", "a100-80gb", scheme=scheme, format="onnx")
    assert "--onnx-precision float32" in caught.value.hint
    wide = {"scheme": scheme, "format": "onnx", "precision": "float32"}
    made = plan("r1-distill-qwen-1.5b", "a100-80gb", **wide)
    assert made.precision == "float32"
    assert plan("r1-distill-qwen-1.5b", "cpu-16gb", scheme=scheme, format="onnx")


def test_a_named_group_must_divide() -> None:
    narrow = replace(
        dimensions("r1-distill-qwen-1.5b"), hidden_size=576, n_heads=9, n_kv_heads=3, head_dim=64
    )
    with pytest.raises(QuantizationError, match="576 is not a multiple of 128"):
        make_plan(narrow, load_target("rtx3060-8gb"), model="narrow", scheme="gptq-int4-g128")


def test_refusal_of_a_graph_offers_what_works() -> None:
    asked = ("r1-distill-llama-8b", "rtx3060-8gb")
    options = {"format": "tensorrt", "scheme": "int4-g128", "context_tokens": 16384}
    with pytest.raises(DoesNotFitError) as caught:
        plan(*asked, **options)
    context = int(offered(caught.value.hint, "--context"))
    assert plan(*asked, **options | {"context_tokens": context}).chosen.fits
    for target in offered(caught.value.hint, "--target").split(" or "):
        assert plan("r1-distill-llama-8b", target, **options).chosen.fits
    with pytest.raises(DoesNotFitError) as caught:
        plan(*asked, **options | {"context_tokens": 10240})
    assert "--scheme int4-g128 --embedding int8-channel" in caught.value.hint
    small = options | {"context_tokens": 10240, "embedding": "int8-channel"}
    assert plan(*asked, **small).chosen.fits


def test_a_cache_that_the_runtime_does_not_have() -> None:
    for format_, cache_type, allowed in (
        ("gguf", CacheType.FP8, "f16 or q8_0"),
        ("onnx", CacheType.Q8_0, "--kv-cache f16"),
        ("tensorrt", CacheType.FP8, "--kv-cache f16"),
    ):
        with pytest.raises(UsageError, match=f"no KV cache of {cache_type}") as caught:
            plan("r1-distill-qwen-7b", "rtx4090-24gb", format=format_, cache_type=cache_type)
        assert allowed in caught.value.allowed


def test_refining_changes_the_storage_and_keeps_the_room() -> None:
    """With losses that say the opposite of the prior, the bits go elsewhere."""
    made = plan("r1-distill-qwen-7b", "rtx3060-8gb")
    assert made.mix is not None
    assert made.mix.binds
    matrices = [name for name, kind in made.storage.items() if kind not in ("F16", "F32")]
    kinds = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
    kinds += ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1")
    noise = {kind: 4.0 ** -float(kind.strip("IQ")[0]) for kind in kinds}
    measured = Sensitivity(
        losses={
            name: {kind: value * (100 if "gate" in name else 1) for kind, value in noise.items()}
            for name in matrices
        },
        corrections={},
        measured=(),
        n_tokens=4096,
    )
    again = refine_plan(made, measured)
    assert again.mix is not None
    assert again.mix.budget_bytes == made.mix.budget_bytes
    assert 0.99 * made.mix.budget_bytes <= again.mix.used_bytes <= made.mix.budget_bytes
    assert again.chosen.fits
    assert again.chosen == again.mix.candidate
    assert {kind for name, kind in again.storage.items() if "gate_proj" in name} == {"Q8_0"}
    assert {kind for name, kind in made.storage.items() if "gate_proj" in name} != {"Q8_0"}
    assert "losses measured on the calibration data" in again.reason
    assert "losses predicted from shapes" in made.reason
    named = plan("r1-distill-qwen-7b", "rtx3060-8gb", scheme="q4_k_m")
    assert refine_plan(named, measured) is named


def test_the_nearest_file_type_names_a_mix() -> None:
    def nearest(bits: float) -> str | None:
        budget = Budget(bits_per_weight=bits)
        return plan("r1-distill-llama-8b", "a100-80gb", budget=budget).nearest

    # llama.cpp's own figures for 8B: Q6_K has 6.56 bits per weight, Q4_K_M 4.89, Q3_K_M 4.00.
    assert nearest(6.5) == "q6_k"
    assert nearest(4.89) == "q4_k_m"
    assert nearest(4.0) == "q3_k_m"
    engine = plan("r1-distill-llama-8b", "a100-80gb", format="tensorrt")
    assert engine.nearest is None
    assert set(engine.storage.values()) <= {*GRIDS, "F16"}
