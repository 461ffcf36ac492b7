"""The plan against arithmetic done again, slowly, from the published sizes of the models.

The oracle restates llama.cpp's Q8_0, Q6_K, Q4_K_M and F16 by hand: which matrices exist, what each
type takes, and nothing of the code under test.
"""

from dataclasses import dataclass, replace

import pytest

from tightfit.calib.models import MODELS, find_model
from tightfit.errors import CheckpointError, DoesNotFitError, QuantizationError, UsageError
from tightfit.quant.registry import GRIDS
from tightfit.targets.candidates import Candidate, Setting, list_candidates, parse_schemes
from tightfit.targets.formats import FORMATS, find_format
from tightfit.targets.plan import Plan, make_plan, refuse_oversized, size_text
from tightfit.targets.profile import list_targets, load_target

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Sizes:
    """From the models' config.json, typed in by hand."""

    layers: int
    hidden: int
    wide: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    biases: bool = False
    qk_norm: bool = False
    rope_divisors: bool = False
    """Llama 3's frequency divisors, a tensor of the GGUF."""


SIZES = {
    "r1-distill-qwen-1.5b": Sizes(28, 1536, 8960, 12, 2, 128, 151936, biases=True),
    "r1-distill-qwen-7b": Sizes(28, 3584, 18944, 28, 4, 128, 152064, biases=True),
    "r1-distill-llama-8b": Sizes(32, 4096, 14336, 32, 8, 128, 128256, rope_divisors=True),
    "r1-0528-qwen3-8b": Sizes(36, 4096, 12288, 32, 8, 128, 151936, qk_norm=True),
    "r1-distill-qwen-14b": Sizes(48, 5120, 13824, 40, 8, 128, 152064, biases=True),
    "r1-distill-qwen-32b": Sizes(64, 5120, 27648, 40, 8, 128, 152064, biases=True),
    "r1-distill-llama-70b": Sizes(80, 8192, 28672, 64, 8, 128, 128256, rope_divisors=True),
}
FULL = ("r1", "r1-zero", "r1-0528")

# Bytes for 256 weights, from the GGUF specification's block layouts.
F16, Q8_0, Q6_K, Q5_K, Q4_K = 512, 34 * 8, 210, 176, 144

AVAILABLE = {  # (memory - reserved) of each profile, in GiB
    "rtx3060-8gb": 7.25,
    "rtx3060-12gb": 11.25,
    "rtx4090-24gb": 23.1,
    "rtx5090-32gb": 30.8,
    "a100-80gb": 79.15,
    "cpu-16gb": 12.0,
}
RUNTIME = {
    "rtx3060-8gb": 0.3,
    "rtx3060-12gb": 0.3,
    "rtx4090-24gb": 0.5,
    "rtx5090-32gb": 0.6,
    "a100-80gb": 0.5,
    "cpu-16gb": 0.1,
}


def more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def weights(s: Sizes, scheme: str) -> tuple[int, int]:
    """(bytes of all tensors, bytes of the token table)."""
    base, head = {"f16": (F16, F16), "q8_0": (Q8_0, Q8_0), "q6_k": (Q6_K, Q6_K)}.get(
        scheme, (Q4_K, Q6_K)
    )
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    table = s.vocab * s.hidden * base // 256
    total = table + s.vocab * s.hidden * head // 256 + 4 * s.hidden
    total += 4 * s.head_dim // 2 * s.rope_divisors
    for layer in range(s.layers):
        better = base if base != Q4_K else Q6_K if more_bits(layer, s.layers) else Q4_K
        value = Q5_K if s.layers == 80 and better == Q4_K else better
        total += s.hidden * (q + kv) * base // 256  # q, k
        total += s.hidden * kv * value // 256
        total += q * s.hidden * base // 256  # output
        total += 2 * s.hidden * s.wide * base // 256  # gate, up
        total += s.wide * s.hidden * better // 256  # down
        total += 4 * 2 * s.hidden  # two norms in F32
        total += 4 * (q + 2 * kv) * s.biases + 4 * 2 * s.head_dim * s.qk_norm
    return total, table


def total_use(s: Sizes, scheme: str, target: str, context: int) -> int:
    all_bytes, table = weights(s, scheme)
    resident = all_bytes if target == "cpu-16gb" else all_bytes - table
    kv_cache = s.layers * s.kv_heads * s.head_dim * context * 4
    logits = 512 * 4 * (s.vocab + 2 * s.hidden)
    last_block = 512 * 2 * context + 512 * 4 * (3 * s.wide + 4 * s.hidden)
    return resident + kv_cache + max(logits, last_block) + int(RUNTIME[target] * GIB)


def plan(model: str, target: str, **options: object) -> Plan:
    known = find_model(model)
    assert known
    refuse_oversized(known, load_target(target))
    return make_plan(known.dimensions, load_target(target), model=model, **options)  # type: ignore[arg-type]


def test_oracle_covers_every_model_and_target() -> None:
    assert {*SIZES, *FULL} == {model.name for model in MODELS.values()}
    assert len(MODELS) == 10
    assert set(AVAILABLE) == set(list_targets())


def candidates(model: str, target: str, context: int, *schemes: str) -> tuple[Candidate, ...]:
    known = find_model(model)
    assert known
    gguf = find_format("gguf")
    setting = Setting(
        dimensions=known.dimensions,
        target=load_target(target),
        format=gguf,
        precision=None,
        context_tokens=context,
    )
    return list_candidates(setting, parse_schemes(schemes, gguf))


@pytest.mark.parametrize("target", AVAILABLE)
@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize("scheme", ["q4_k_m", "q6_k", "q8_0", "f16"])
def test_every_figure_by_hand(model: str, target: str, scheme: str) -> None:
    available = int(AVAILABLE[target] * GIB)
    for context in (8192, 131072 if model != "r1-0528-qwen3-8b" else 32768):
        expected = total_use(SIZES[model], scheme, target, context)
        (candidate,) = candidates(model, target, context, scheme)
        assert candidate.scheme == scheme
        assert candidate.memory.total_bytes == expected
        assert candidate.fits == (expected <= available)
        all_bytes, _ = weights(SIZES[model], scheme)
        assert all_bytes <= candidate.file_bytes < all_bytes + 32 * 1000  # alignment only


def test_a_named_scheme_is_taken_or_refused() -> None:
    needed = total_use(SIZES["r1-distill-llama-8b"], "q8_0", "rtx3060-8gb", 8192)
    with pytest.raises(DoesNotFitError, match=f"it needs q8_0 {needed / GIB:.2f} GiB"):
        plan("r1-distill-llama-8b", "rtx3060-8gb", scheme="q8_0")
    made = plan("r1-distill-llama-8b", "a100-80gb", scheme="q8_0")
    assert made.chosen.scheme == "q8_0"
    assert made.chosen.fits
    assert "asked for" in made.reason


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
    (candidate,) = candidates(model, "a100-80gb", 8192, scheme)
    assert candidate.bits_per_weight == pytest.approx(bpw, abs=0.005)


@pytest.mark.parametrize("target", AVAILABLE)
@pytest.mark.parametrize("model", SIZES)
def test_longest_context_is_the_last_that_fits(model: str, target: str) -> None:
    known = find_model(model)
    assert known
    available = int(AVAILABLE[target] * GIB)
    for candidate in candidates(model, target, 256, "q4_k_m", "q6_k", "q8_0", "f16"):
        fitting = [
            context
            for context in range(256, known.dimensions.max_position_embeddings + 1, 256)
            if total_use(SIZES[model], candidate.scheme, target, context) <= available
        ]
        assert candidate.max_context_tokens == (fitting[-1] if fitting else 0)


CHOICES = {
    #                        8 GB      12 GB     4090      5090      A100    CPU 16 GB
    "r1-distill-qwen-1.5b": ("q4_k_m", "q5_k_m", "q6_k", "q8_0", "q8_0", "q4_k_m"),
    "r1-distill-qwen-7b": ("q4_k_m", "q5_k_m", "q6_k", "q8_0", "q8_0", "q4_k_m"),
    "r1-distill-llama-8b": ("q4_k_m", "q5_k_m", "q6_k", "q8_0", "q8_0", "q4_k_m"),
    "r1-0528-qwen3-8b": ("q4_k_m", "q5_k_m", "q6_k", "q8_0", "q8_0", "q4_k_m"),
    "r1-distill-qwen-14b": ("q2_k", "q4_k_m", "q6_k", "q8_0", "q8_0", "q4_k_m"),
    "r1-distill-qwen-32b": (None, None, "q4_k_m", "q6_k", "q8_0", None),
    "r1-distill-llama-70b": (None, None, None, "q2_k", "q8_0", None),
    **dict.fromkeys(FULL, (None,) * 6),
}


@pytest.mark.parametrize("model", CHOICES)
def test_choice_for_every_target(model: str) -> None:
    for target, scheme in zip(AVAILABLE, CHOICES[model], strict=True):
        if scheme is None:
            with pytest.raises(DoesNotFitError) as caught:
                plan(model, target)
            assert caught.value.exit_status == 4
            assert "what would fit" in caught.value.hint
        else:
            assert plan(model, target).chosen.scheme == scheme


def test_reason_names_the_room_and_what_else_fits() -> None:
    reason = plan("r1-distill-llama-8b", "rtx3060-8gb").reason
    needed = total_use(SIZES["r1-distill-llama-8b"], "q4_k_m", "rtx3060-8gb", 8192)
    assert f"{needed / GIB:.2f} GiB of the 7.25 GiB" in reason
    assert "8192 tokens" in reason
    assert "Larger ones that fit too: " in reason
    assert "q5_k_m" in reason.partition("Larger")[2]
    assert "q8_0" not in reason


def test_reason_names_what_was_passed_over() -> None:
    made = plan("r1-distill-qwen-14b", "rtx3060-12gb")
    assert "q5_k_m would not" in made.reason


def test_refusal_says_what_would_fit() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        plan("r1-distill-llama-8b", "rtx3060-8gb", scheme="q8_0", context_tokens=16384)
    hint = caught.value.hint
    assert "rtx4090-24gb" in hint
    assert "a100-80gb" in hint
    for target in hint.partition("--target ")[2].partition(";")[0].split(" or "):
        assert plan("r1-distill-llama-8b", target, scheme="q8_0", context_tokens=16384)
    assert "another model: r1-distill-qwen-1.5b, r1-distill-qwen-7b" in hint
    # What is offered must itself be accepted.
    smaller = hint.partition("--scheme ")[2].partition(";")[0]
    assert plan(
        "r1-distill-llama-8b", "rtx3060-8gb", scheme=smaller, context_tokens=16384
    ).chosen.fits


def test_refusal_offers_the_longest_context_that_fits() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        plan("r1-distill-llama-8b", "rtx3060-8gb", scheme="q4_k_m", context_tokens=65536)
    offered = int(caught.value.hint.partition("--context ")[2].partition(";")[0])
    options = {"scheme": "q4_k_m"}
    assert plan("r1-distill-llama-8b", "rtx3060-8gb", context_tokens=offered, **options)
    with pytest.raises(DoesNotFitError):
        plan("r1-distill-llama-8b", "rtx3060-8gb", context_tokens=offered + 1, **options)


@pytest.mark.parametrize("context", [0, -1, 131073])
def test_context_beyond_the_model(context: int) -> None:
    with pytest.raises(UsageError, match="1 to 131072 tokens"):
        plan("r1-distill-qwen-7b", "a100-80gb", context_tokens=context)


def test_default_context_is_never_beyond_the_model() -> None:
    known = find_model("r1-distill-qwen-7b")
    assert known
    short = replace(known.dimensions, max_position_embeddings=1000)
    made = make_plan(short, load_target("rtx3060-8gb"), model="short")
    assert made.context_tokens == 1000
    assert made.chosen.max_context_tokens == 1000


def test_grid_that_the_target_cannot_execute() -> None:
    with pytest.raises(UsageError, match="not fp8") as caught:
        plan("r1-distill-qwen-7b", "rtx3060-8gb", scheme="fp8-e4m3-channel", format="onnx")
    assert "8.6" in caught.value.problem
    with pytest.raises(UsageError, match="GGUF cannot hold") as caught:
        plan("r1-distill-qwen-7b", "rtx4090-24gb", scheme="fp8")
    assert "onnx, tensorrt" in caught.value.hint
    with pytest.raises(UsageError, match="not a scheme of GGUF"):
        plan("r1-distill-qwen-7b", "rtx3060-8gb", scheme="q9_z")


def test_one_scheme_for_three_formats_stores_the_same() -> None:
    plans = [
        plan("r1-distill-qwen-7b", "rtx3060-8gb", scheme="gptq-int4-g128", format=format_)
        for format_ in FORMATS
    ]
    assert [made.format for made in plans] == ["gguf", "onnx", "tensorrt"]
    assert [made.runtime for made in plans] == ["llama.cpp", "onnxruntime", "tensorrt-rtx"]
    assert [made.precision for made in plans] == [None, "float16", "float16"]
    assert plans[0].storage == plans[1].storage == plans[2].storage
    assert all(made.scheme.method == "gptq" for made in plans)
    assert all(made.chosen.scheme == made.scheme.name == "gptq-int4-g128" for made in plans)


INT4, INT8, FP8 = "int4-g128", "int8-g128", "fp8-channel"
GRAPH_CHOICES = {
    #                                  8 GB  12 GB 4090  5090  CPU
    ("r1-distill-qwen-1.5b", "onnx"): (INT4, INT8, INT8, INT8, INT4),
    ("r1-distill-llama-8b", "onnx"): (INT4, INT8, INT8, INT8, INT4),
    ("r1-distill-qwen-14b", "onnx"): (None, INT4, INT8, INT8, None),
    ("r1-distill-qwen-1.5b", "tensorrt"): (INT4, INT4, FP8, FP8),
    ("r1-distill-llama-8b", "tensorrt"): (INT4, INT4, FP8, FP8),
    ("r1-distill-qwen-32b", "tensorrt"): (None, None, INT4, INT4),
}


@pytest.mark.parametrize(("model", "format_"), GRAPH_CHOICES)
def test_choice_of_a_graph(model: str, format_: str) -> None:
    targets = ("rtx3060-8gb", "rtx3060-12gb", "rtx4090-24gb", "rtx5090-32gb", "cpu-16gb")
    for target, scheme in zip(targets, GRAPH_CHOICES[model, format_], strict=False):
        if scheme is None:
            with pytest.raises(DoesNotFitError):
                plan(model, target, format=format_)
            continue
        made = plan(model, target, format=format_)
        assert made.chosen.scheme == scheme
        assert "it takes about" in made.reason
        assert set(made.storage.values()) <= {*GRIDS, "F16"}


def test_candidates_of_a_format() -> None:
    names = [
        item.scheme for item in plan("r1-distill-qwen-7b", "a100-80gb", format="onnx").candidates
    ]
    assert names == [
        "f16",
        "int8-g32",
        "int8-g64",
        "int8-g128",
        "int4-g32",
        "int4-g64",
        "int4-g128",
    ]
    names = [
        item.scheme for item in plan("r1-distill-qwen-1.5b", "cpu-16gb", format="onnx").candidates
    ]
    assert {"f32", "bf16", "f16", "fp8-channel"} < set(names)
    asked = plan("r1-distill-qwen-7b", "a100-80gb", format="onnx", scheme="gptq-int4-g64")
    names = [item.scheme for item in asked.candidates]
    assert "gptq-int4-g64" in names
    assert "int4-g64" not in names


def test_a_target_without_the_format() -> None:
    with pytest.raises(UsageError, match="NVIDIA's GPUs only") as caught:
        plan("r1-distill-qwen-7b", "cpu-16gb", format="tensorrt")
    assert caught.value.allowed == "formats for cpu-16gb: gguf, onnx"
    assert "rtx4090-24gb" in caught.value.hint
    assert "cpu-16gb" not in caught.value.hint
    old = replace(load_target("rtx3060-8gb"), preferred_schemes={"gguf": ("q4_k_m",)})
    known = find_model("r1-distill-qwen-7b")
    assert known
    with pytest.raises(UsageError, match="names no scheme of ONNX"):
        make_plan(known.dimensions, old, model="7b", format="onnx")
    with pytest.raises(UsageError, match="no format named 'exl2'"):
        plan("r1-distill-qwen-7b", "cpu-16gb", format="exl2")


def test_an_engine_for_the_a100_is_called_experimental() -> None:
    reason = plan("r1-distill-qwen-7b", "a100-80gb", format="tensorrt").reason
    assert "Engines for SM 80 are experimental" in reason
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


def test_auto_takes_a_group_that_divides() -> None:
    known = find_model("r1-distill-qwen-1.5b")
    assert known
    narrow = replace(known.dimensions, hidden_size=576, n_heads=9, n_kv_heads=3, head_dim=64)
    made = make_plan(narrow, load_target("rtx3060-8gb"), model="narrow", format="tensorrt")
    assert made.chosen.scheme == "int4-g64"
    assert "widths do not allow int4-g128" in made.reason
    with pytest.raises(QuantizationError, match="576 is not a multiple of 128"):
        make_plan(narrow, load_target("rtx3060-8gb"), model="narrow", scheme="gptq-int4-g128")
    odd = replace(narrow, hidden_size=588, head_dim=98, n_heads=6, n_kv_heads=2)
    with pytest.raises(QuantizationError, match="588 is not a multiple of 128") as caught:
        make_plan(odd, load_target("rtx3060-8gb"), model="odd", format="tensorrt")
    assert "no grid of 4 bits" in caught.value.hint


def test_refusal_of_a_graph_offers_what_works() -> None:
    options = {"format": "tensorrt", "scheme": "int4-g128", "context_tokens": 16384}
    with pytest.raises(DoesNotFitError) as caught:
        plan("r1-distill-llama-8b", "rtx3060-8gb", **options)
    hint = caught.value.hint
    offered = int(hint.partition("--context ")[2].partition(";")[0])
    assert plan("r1-distill-llama-8b", "rtx3060-8gb", **options | {"context_tokens": offered})
    targets = hint.partition("--target ")[2].partition(";")[0].split(" or ")
    assert targets == ["a100-80gb", "rtx3060-12gb", "rtx4090-24gb", "rtx5090-32gb"]
    for target in targets:
        assert plan("r1-distill-llama-8b", target, **options)
    with pytest.raises(DoesNotFitError) as caught:
        plan("r1-distill-llama-8b", "rtx3060-8gb", **options | {"context_tokens": 10240})
    assert "--scheme int4-g128 --embedding int8-channel" in caught.value.hint
    small = options | {"context_tokens": 10240, "embedding": "int8-channel"}
    assert plan("r1-distill-llama-8b", "rtx3060-8gb", **small).chosen.fits


def test_unknown_family_that_might_fit_is_not_called_too_big() -> None:
    huge = replace(load_target("a100-80gb"), memory_gib=1000.0)
    known = find_model("r1")
    assert known
    refuse_oversized(known, huge)
    with pytest.raises(CheckpointError, match="deepseek_v3"):
        make_plan(known.dimensions, huge, model="r1")


def test_sizes_are_readable() -> None:
    assert size_text(2 * MIB) == "2.0 MiB"
    assert size_text(3000) == "2.9 KiB"
    assert size_text(1.5 * GIB) == "1.50 GiB"
