"""Names of schemes, and what each tensor is stored as."""

from collections import Counter
from dataclasses import replace

import pytest

from tightfit.calib.architecture import LLAMA, QWEN2
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.shapes import tensor_shapes
from tightfit.errors import QuantizationError, UsageError
from tightfit.quant.registry import GRIDS
from tightfit.targets.formats import FORMATS
from tightfit.targets.schemes.gguf import gguf_shapes, scheme_types
from tightfit.targets.schemes.scheme import METHODS, parse_scheme

SMALL = ModelDimensions(
    model_type="qwen2",
    hidden_size=256,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=64,
    intermediate_size=512,
    vocab_size=1000,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
)
NARROW = replace(SMALL, hidden_size=192, n_heads=3, n_kv_heads=1)
"""192 = 3 * 64."""
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
Q_PROJ, BIAS = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.bias"


@pytest.mark.parametrize(
    ("name", "format_", "canonical", "method", "static", "linear"),
    [
        ("gptq-int4-g128", "onnx", "gptq-int4-g128", "gptq", False, "int4-g128-sym"),
        ("GPTQ-INT4-G128-SYM", "tensorrt", "gptq-int4-g128", "gptq", False, "int4-g128-sym"),
        ("int4-g128-sym", "gguf", "int4-g128", None, False, "int4-g128-sym"),
        ("awq-gptq-int4-g64-asym", "onnx", "awq-gptq-int4-g64-asym", "awq-gptq", False, None),
        ("awq-int5-channel", "gguf", "awq-int5-channel", "awq", False, "int5-channel-sym"),
        ("rtn-int8-channel", "onnx", "rtn-int8-channel", "rtn", False, "int8-channel-sym"),
        ("fp8", "onnx", "fp8-channel", None, False, "fp8-e4m3-channel"),
        ("fp8-e4m3-channel", "onnx", "fp8-channel", None, False, "fp8-e4m3-channel"),
        ("fp8-tensor-static", "tensorrt", "fp8-tensor-static", None, True, "fp8-e4m3-tensor"),
        ("rtn-fp8-static", "onnx", "rtn-fp8-channel-static", "rtn", True, "fp8-e4m3-channel"),
        ("awq-fp8-block128", "onnx", "awq-fp8-block128", "awq", False, "fp8-e4m3-block128"),
        ("Q8_0", "gguf", "q8_0", None, False, "Q8_0"),
        ("f16", "tensorrt", "f16", None, False, "F16"),
        ("bf16", "onnx", "bf16", None, False, "BF16"),
        ("f32", "onnx", "f32", None, False, "F32"),
    ],
)
def test_names(name, format_, canonical, method, static, linear) -> None:
    scheme = parse_scheme(name, format=format_)
    assert scheme.name == canonical
    assert scheme.method == method
    assert scheme.static_inputs == static
    storage = scheme.storage(QWEN2, SMALL)
    assert storage[Q_PROJ] == (linear or "int4-g64-asym")
    # A canonical name means itself.
    assert parse_scheme(canonical, format=format_) == scheme


def test_one_grid_on_all_linears_and_the_head() -> None:
    storage = parse_scheme("gptq-int4-g128", format="onnx").storage(QWEN2, SMALL)
    assert list(storage) == list(tensor_shapes(QWEN2, SMALL))
    assert Counter(storage.values()) == {"int4-g128-sym": 2 * 7 + 1, "F16": 1 + 2 * (2 + 3) + 1}
    assert storage[HEAD] == "int4-g128-sym"
    assert storage[EMBEDDING] == storage[NORM] == storage[BIAS] == "F16"
    assert set(storage.values()) <= {*GRIDS, "F16"}


def test_all_formats_store_the_same() -> None:
    stored = [parse_scheme("gptq-int4-g128", format=name).storage(QWEN2, SMALL) for name in FORMATS]
    assert stored[0] == stored[1] == stored[2]


def test_head_and_embedding_override() -> None:
    scheme = parse_scheme("gptq-int4-g128", format="onnx", head="F16", embedding="int8-g32")
    storage = scheme.storage(QWEN2, SMALL)
    assert storage[HEAD] == "F16"
    assert storage[EMBEDDING] == "int8-g32-sym"
    assert storage[Q_PROJ] == "int4-g128-sym"
    mixed = parse_scheme("q4_k_m", format="gguf", head="q8_0", embedding="f16")
    storage = mixed.storage(QWEN2, SMALL)
    assert (storage[HEAD], storage[EMBEDDING]) == ("Q8_0", "F16")


@pytest.mark.parametrize(
    ("head", "embedding", "stored"),
    [
        (None, None, "F16"),
        ("int8-g32", None, "int8-g32-sym"),
        (None, "int8-g32", "int8-g32-sym"),
        ("int8-g32", "int8-g32-sym", "int8-g32-sym"),
    ],
)
def test_a_tied_head_is_the_embedding(head, embedding, stored) -> None:
    tied = replace(SMALL, tie_word_embeddings=True)
    scheme = parse_scheme("int4-g128", format="onnx", head=head, embedding=embedding)
    storage = scheme.storage(QWEN2, tied)
    assert HEAD not in storage
    assert storage[EMBEDDING] == stored


def test_a_tied_head_cannot_differ() -> None:
    tied = replace(SMALL, tie_word_embeddings=True)
    scheme = parse_scheme("int4-g128", format="onnx", head="int4-g64", embedding="f16")
    with pytest.raises(UsageError, match="head is its embedding: it cannot be int4-g64 and f16"):
        scheme.storage(QWEN2, tied)


@pytest.mark.parametrize("name", ["q4_k_m", "q2_k", "iq4_xs", "f16", "q5_0"])
def test_file_types_are_llama_cpps(name: str) -> None:
    types = scheme_types(name, gguf_shapes(LLAMA, SMALL), LLAMA, SMALL)
    storage = parse_scheme(name, format="gguf").storage(LLAMA, SMALL)
    names = LLAMA.gguf_names(SMALL)
    assert {names[key]: kind for key, kind in storage.items()} == {
        key: kind.name for key, kind in types.items()
    }


def test_floats_keep_vectors_exact() -> None:
    bf16 = parse_scheme("bf16", format="onnx").storage(QWEN2, SMALL)
    assert bf16 == parse_scheme("bf16", format="gguf").storage(QWEN2, SMALL)
    assert (bf16[Q_PROJ], bf16[NORM]) == ("BF16", "F32")
    assert set(parse_scheme("f16", format="tensorrt").storage(QWEN2, SMALL).values()) == {"F16"}


@pytest.mark.parametrize(
    ("name", "format_", "instead"),
    [
        ("q4_k_m", "onnx", "gptq-int4-g128"),
        ("Q4_K_M", "tensorrt", "gptq-int4-g128"),
        ("q2_k", "onnx", "gptq-int2-g32"),
        ("q6_k", "onnx", "gptq-int8-g128"),
        ("q8_0", "tensorrt", "gptq-int8-channel"),
        ("iq4_xs", "onnx", "gptq-int4-g128"),
    ],
)
def test_ggml_grids_elsewhere_are_refused_with_what_to_choose(name, format_, instead) -> None:
    with pytest.raises(UsageError, match=f"cannot hold {name.lower()}") as caught:
        parse_scheme(name, format=format_)
    assert f"--scheme {instead} " in caught.value.hint
    assert parse_scheme(instead, format=format_)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "name",
    [
        *("q9_z", "int4", "int4-g100", "int9-g128", "gptq-", "gptq-q4_k_m", "static", ""),
        *("int4-g128-static", "gptq-f16-static", "awq-rtn-int4-g128"),
    ],
)
def test_unknown_names_list_what_exists(name: str, format_: str) -> None:
    with pytest.raises(UsageError, match="is not a scheme of") as caught:
        parse_scheme(name, format=format_)
    assert "int4-g128" in caught.value.allowed
    assert ("q4_k_m" in caught.value.allowed) == (format_ == "gguf")
    assert ("-static" in caught.value.allowed) == (format_ not in ("gguf", "gptq", "awq"))
    assert all(f"{method}-" in caught.value.allowed for method in METHODS)


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("int4-g128-asym", "tensorrt"),
        ("int4-g32", "tensorrt"),
        ("int3-g128", "onnx"),
        ("int8-g64-asym", "gguf"),
        ("fp8", "gguf"),
        ("fp8-block128", "tensorrt"),
        ("bf16", "tensorrt"),
    ],
)
def test_a_grid_that_the_format_cannot_hold(name: str, format_: str) -> None:
    with pytest.raises(UsageError, match="cannot hold the numbers of the grid") as caught:
        parse_scheme(name, format=format_)
    assert caught.value.allowed.endswith(FORMATS[format_].allowed)


@pytest.mark.parametrize("option", ["head", "embedding"])
def test_wrong_overrides(option: str) -> None:
    with pytest.raises(UsageError, match=f"--{option} q4_k_m is not a grid"):
        parse_scheme("int4-g128", format="onnx", **{option: "q4_k_m"})
    with pytest.raises(UsageError, match="ONNX cannot hold the numbers of the grid Q6_K"):
        parse_scheme("int4-g128", format="onnx", **{option: "q6_k"})


def test_a_width_that_the_group_does_not_divide() -> None:
    with pytest.raises(QuantizationError, match="192 is not a multiple of 128") as caught:
        parse_scheme("gptq-int4-g128", format="onnx").storage(QWEN2, NARROW)
    assert "model.layers.0.self_attn.q_proj.weight" in caught.value.problem
    assert caught.value.allowed == "group sizes that divide every width of this model: 32, 64"
    assert caught.value.hint == "choose int4-g64 or int4-g32 or int4-channel"
    for name in ("int4-g64", "int4-g32", "int4-channel"):
        assert parse_scheme(name, format="onnx").storage(QWEN2, NARROW)
    with pytest.raises(QuantizationError) as caught:
        parse_scheme("gptq-int4-g128", format="tensorrt").storage(QWEN2, NARROW)
    assert caught.value.hint == "choose int4-g64"


def test_a_gguf_stores_rows_in_blocks_of_32() -> None:
    odd = replace(SMALL, intermediate_size=528)
    with pytest.raises(QuantizationError, match="528 is not a multiple of 32") as caught:
        parse_scheme("int8-channel", format="gguf").storage(QWEN2, odd)
    assert "down_proj" in caught.value.problem
    assert parse_scheme("int8-channel", format="onnx").storage(QWEN2, odd)
