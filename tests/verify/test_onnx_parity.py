"""Parity accepts the rounding of the graph's precision and refuses mixed-up tensors."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.checkpoints import make_checkpoint
from support.onnx_folders import onnx_folder
from support.onnx_models import rtn_weights

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.errors import ArtifactError, RuntimeFailureError
from tightfit.export.onnx.options import Dialect, Precision
from tightfit.export.onnx.readback import StoredWeight, read_input_scales
from tightfit.verify import onnx_parity
from tightfit.verify.comparison import LogitComparison
from tightfit.verify.onnx_parity import DECODE_TOKENS, PROMPT_TOKENS, measure_onnx_parity

BLOCK = "model.layers.1"
SWAPS = [
    ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    ("input_layernorm.weight", "post_attention_layernorm.weight"),
    ("self_attn.k_proj.weight", "self_attn.v_proj.weight"),
]
FORMS = {
    "qwen2-yarn-ort": ("qwen2", {"rope": "yarn"}, Dialect.ORT, "int4-g32-asym", {}),
    "llama3-tied-standard": (
        "llama",
        {"rope": "llama3", "tie": True},
        Dialect.STANDARD,
        "int4-g128-sym",
        {},
    ),
    "qwen3-act-order": ("qwen3", {}, Dialect.ORT, "int4-g64-sym", {"act_order": True}),
    "quantized-embedding": (
        "llama",
        {"tie": True},
        Dialect.ORT,
        "int8-g32-sym",
        {"embedding": "int4-g32-asym"},
    ),
    # onnxruntime would round this one's activations to int8 unless told not to.
    "int8-rows": ("qwen2", {}, Dialect.STANDARD, "int8-channel-sym", {}),
    "fp8-rows": ("qwen2", {}, Dialect.STANDARD, "fp8-e4m3-channel", {}),
}


def folder_of(
    folder: Path, form: str, precision: Precision = Precision.FLOAT32, **weights: object
) -> tuple[Path, Path]:
    """A folder with the tokenizer, and the model in it."""
    family, config, dialect, grid, options = FORMS[form]
    checkpoint = make_checkpoint(folder / "checkpoint", family, **config)
    rounded = rtn_weights(open_checkpoint(checkpoint), grid, **options | weights)
    out = folder / "out"
    return out, onnx_folder(checkpoint, out, dialect=dialect, precision=precision, weights=rounded)


@pytest.mark.parametrize("form", FORMS)
def test_a_float32_graph_passes(form: str, tmp_path: Path) -> None:
    measured = measure_onnx_parity(*folder_of(tmp_path, form))
    assert measured.passed
    assert 0 < measured.relative_difference < 1e-5
    assert measured.top1_agreement > 0.99
    positions = sum(PROMPT_TOKENS) + len(PROMPT_TOKENS) * DECODE_TOKENS
    assert measured.tokens == positions - len(PROMPT_TOKENS), "all but the last of each"
    assert measured.runtime.startswith("onnxruntime 1.")


@pytest.mark.parametrize("form", ["qwen2-yarn-ort", "llama3-tied-standard"])
def test_a_float16_graph_passes(form: str, tmp_path: Path) -> None:
    measured = measure_onnx_parity(*folder_of(tmp_path, form, Precision.FLOAT16))
    assert measured.passed
    assert 1e-5 < measured.relative_difference < 2e-3


def test_static_float8_activations_are_rounded_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = folder_of(tmp_path, "fp8-rows", input_scale=0.05)
    scales = read_input_scales(model)
    assert scales[f"{BLOCK}.mlp.down_proj.weight"] == np.float32(0.05)
    assert len(scales) == 2 * 7
    rounded = measure_onnx_parity(folder, model)
    assert rounded.passed
    monkeypatch.setattr(onnx_parity, "read_input_scales", lambda _path: {})
    plain = measure_onnx_parity(folder, model)
    assert plain.relative_difference > 10 * rounded.relative_difference


@pytest.fixture(scope="module")
def folder_and_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return folder_of(tmp_path_factory.mktemp("parity"), "llama3-tied-standard")


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("limit", ["FLOAT32_LIMIT", "FLOAT16_LIMIT"])
def test_two_tensors_in_each_others_place_fail(
    swap: tuple[str, str],
    limit: str,
    folder_and_model: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_weights = onnx_parity.read_weights
    one, two = (f"{BLOCK}.{name}" for name in swap)
    exchanged = {one: two, two: one}

    def swapped(path: Path) -> Iterator[StoredWeight]:
        for weight in read_weights(path):
            yield dataclasses.replace(weight, name=exchanged.get(weight.name, weight.name))

    monkeypatch.setattr(onnx_parity, "read_weights", swapped)
    monkeypatch.setattr(onnx_parity, "FLOAT32_LIMIT", getattr(onnx_parity, limit))
    assert not measure_onnx_parity(*folder_and_model).passed


def test_a_cache_that_is_wrong_after_padding_fails(
    folder_and_model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only decoding with padded prompts shows: positions that count the padding."""
    run = onnx_parity._run

    def padded(loaded, ids_BS, mask_BP, caches):  # type: ignore[no-untyped-def]
        return run(loaded, ids_BS, np.ones_like(mask_BP), caches)

    monkeypatch.setattr(onnx_parity, "_run", padded)
    assert not measure_onnx_parity(*folder_and_model).passed


def test_damage_is_refused(tmp_path: Path) -> None:
    folder, model = folder_of(tmp_path, "qwen2-yarn-ort")
    data = model.with_name("model.onnx.data")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="would end at byte"):
        measure_onnx_parity(folder, model)
    data.write_bytes(whole)
    changed = onnx.load(model, load_external_data=False)
    changed.graph.node[5].op_type = "NoSuchOperator"
    model.write_bytes(changed.SerializeToString())
    with pytest.raises(RuntimeFailureError, match="NoSuchOperator"):
        measure_onnx_parity(folder, model)


def test_the_comparison_is_the_textbook_one() -> None:
    random = np.random.default_rng(0)
    references = [random.standard_normal((n, 9)).astype(np.float32) for n in (4, 7)]
    actuals = [part + 1e-2 * random.standard_normal(part.shape).astype(np.float32)
               for part in references]  # fmt: skip
    comparison = LogitComparison()
    for reference, actual in zip(references, actuals, strict=True):
        comparison.add(reference, actual)
    reference, actual = (
        np.concatenate(parts).astype(np.float64) for parts in (references, actuals)
    )
    difference = actual - reference

    def spread(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean((values - values.mean(axis=1, keepdims=True)) ** 2)))

    result = comparison.result("test", passed=True)
    assert result.mean_abs_difference == pytest.approx(np.abs(difference).mean(), rel=1e-4)
    assert result.max_abs_difference == pytest.approx(np.abs(difference).max(), rel=1e-4)
    assert result.relative_difference == pytest.approx(spread(difference) / spread(reference), 1e-4)
    largest = np.abs(difference).max() / np.abs(reference).max()
    assert comparison.relative_maximum == pytest.approx(largest, rel=1e-4)
    assert result.tokens == 3 + 6
