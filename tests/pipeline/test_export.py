"""Exports of every family are exact, run in llama.cpp, and never replace or half-write a result."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import make_checkpoint

from tightfit.calib.calibration import CalibrationOptions
from tightfit.errors import ArtifactError, CalibrationError, CheckpointError, DoesNotFitError
from tightfit.export.gguf.readback import describe, read_tensors
from tightfit.export.manifest import read_manifest
from tightfit.pipeline.export import run_export
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter
from tightfit.runtimes.llamacpp import LlamaCpp
from tightfit.verify.run import run_verify

from .conftest import SMALL

Build = Callable[..., ExportRequest]


def export(request: ExportRequest) -> Path:
    """Export, and return the first GGUF file."""
    manifest = run_export(request, SilentReporter()).manifest
    assert manifest is not None
    return request.output / manifest.artifacts[0].files[0].name


@pytest.mark.parametrize(
    ("family", "options", "scheme"),
    [
        ("qwen2", {"tie": True, "sharded": True}, "q4_k_m"),
        ("qwen3", {"rope": "yarn"}, "q3_k_m"),
        ("llama", {"rope": "llama3"}, "q6_k"),
        ("llama", {"hidden": 192, "tie": True}, "q4_k_m"),  # 192: every K-quant falls back
    ],
)
def test_every_family_is_exact_and_runs(
    family: str, options: dict[str, object], scheme: str, tmp_path: Path
) -> None:
    model = make_checkpoint(tmp_path / "model", family, **options)  # type: ignore[arg-type]
    gguf = export(
        ExportRequest(
            model=str(model),
            target="rtx3060-8gb",
            output=tmp_path / "out",
            scheme=scheme,
            calibration=SMALL,
        )
    )

    verification = run_verify(tmp_path / "out", SilentReporter()).artifacts[0].verification

    assert verification is not None
    assert verification.passed
    assert verification.exact_tensors == verification.tensors
    assert verification.parity is not None
    assert verification.parity.mean_kl_nats < 1e-3
    with LlamaCpp(gguf, context_tokens=64) as runtime:
        (answer,) = runtime.generate([[506, 508, 20]], max_tokens=8, seed=0)
        assert len(answer.token_ids) > 0
    if options.get("hidden") == 192:
        assert {tensor.ggml_type.name for tensor in read_tensors(gguf)} >= {"Q5_0", "Q8_0"}


def test_the_same_request_gives_the_same_bytes(request_for: Build, tmp_path: Path) -> None:
    first = export(request_for(output=tmp_path / "a"))
    second = export(request_for(output=tmp_path / "b"))

    assert first.read_bytes() == second.read_bytes()
    manifests = [read_manifest(path.parent) for path in (first, second)]
    assert manifests[0] == manifests[1]


def test_another_seed_chooses_other_sequences(request_for: Build, tmp_path: Path) -> None:
    first = export(request_for(output=tmp_path / "a"))
    other = dataclasses.replace(SMALL, seed=1)
    second = export(request_for(output=tmp_path / "b", calibration=other))

    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_every_algorithm_ends_in_an_exact_file(request_for: Build, algorithm: Algorithm) -> None:
    request = request_for(method=Method(algorithm=algorithm))
    export(request)

    manifest = run_verify(request.output, SilentReporter())

    assert manifest.artifacts[0].scheme.method == algorithm.value
    assert manifest.artifacts[0].verification is not None
    assert manifest.artifacts[0].verification.passed


def test_a_float_scheme_copies_the_weights(request_for: Build, qwen2: Path) -> None:
    from safetensors.torch import load_file

    gguf = export(request_for(scheme="bf16"))

    original = load_file(qwen2 / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    stored = {tensor.name: tensor for tensor in read_tensors(gguf)}["blk.0.ffn_up.weight"]
    assert np.array_equal(stored.values(), original.float().numpy())
    assert read_manifest(gguf.parent).calibration is None


def test_a_split_artifact_verifies_and_loads(request_for: Build) -> None:
    request = request_for(split_max_bytes=300_000)
    first = export(request)

    assert len(read_manifest(request.output).artifacts[0].files) > 2
    assert run_verify(request.output, SilentReporter()).artifacts[0].verification is not None
    with LlamaCpp(first, context_tokens=64) as runtime:
        assert runtime.logits([506, 508]).shape == (2, 512)


def test_the_manifest_says_what_happened(request_for: Build) -> None:
    request = request_for()
    gguf = export(request)
    manifest = read_manifest(request.output)

    assert manifest.input.files[0].name == "config.json"
    assert manifest.calibration is not None
    assert manifest.calibration.samples == SMALL.samples
    quantized = [record for record in manifest.artifacts[0].tensors if record.grid == "Q4_0"]
    assert quantized
    errors = [record.relative_error for record in quantized if "token_embd" not in record.name]
    assert all(error is not None and 0 < error < 0.05 for error in errors)
    assert str(gguf.parent) not in (request.output / "tightfit.json").read_text()
    assert describe(gguf).metadata["quantize.imatrix.chunks_count"] == SMALL.samples


def test_a_finished_result_is_not_replaced_unasked(request_for: Build) -> None:
    gguf = export(request_for())
    before = gguf.read_bytes()

    with pytest.raises(ArtifactError, match="exists already"):
        run_export(request_for(scheme="q8_0"), SilentReporter())

    assert gguf.read_bytes() == before
    run_export(request_for(overwrite=True), SilentReporter())
    assert gguf.read_bytes() == before


def test_overwriting_leaves_no_file_of_the_old_result(request_for: Build) -> None:
    old = export(request_for())
    new = export(request_for(scheme="q8_0", overwrite=True))

    assert new.exists()
    assert not old.exists()
    assert run_verify(new.parent, SilentReporter()).artifacts[0].scheme.name == "q8_0"


def test_a_foreign_file_of_that_name_is_not_replaced(request_for: Build) -> None:
    request = request_for()
    request.output.mkdir()
    (request.output / "model-Q4_0.gguf").write_bytes(b"mine")

    with pytest.raises(ArtifactError, match="exists already"):
        run_export(request, SilentReporter())

    assert (request.output / "model-Q4_0.gguf").read_bytes() == b"mine"


def test_what_does_not_fit_is_refused_before_any_download(request_for: Build) -> None:
    """The Hub is offline here: reaching for the weights would raise another error."""
    request = request_for(model="r1-distill-llama-70b", scheme="auto")

    with pytest.raises(DoesNotFitError, match="does not fit rtx3060-8gb") as caught:
        run_export(request, SilentReporter())

    assert "--target rtx5090-32gb" in caught.value.hint
    assert caught.value.exit_status == 4
    assert not request.output.exists()


def test_a_registered_model_is_planned_without_a_download(request_for: Build) -> None:
    request = request_for(model="r1-distill-qwen-7b", scheme="auto", dry_run=True)

    plan = run_export(request, SilentReporter()).plans[0]

    assert plan.chosen.scheme == "auto"
    assert plan.nearest == "q8_0"


def test_a_damaged_checkpoint_leaves_no_output(qwen2: Path, request_for: Build) -> None:
    request = request_for(model=str(qwen2.parent / "nowhere"))

    with pytest.raises(CheckpointError, match="nowhere"):
        run_export(request, SilentReporter())

    assert not request.output.exists()


def test_dry_run_writes_nothing(request_for: Build) -> None:
    request = request_for(dry_run=True)

    assert run_export(request, SilentReporter()).plans[0].chosen.scheme == "q4_0"
    assert not request.output.exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", "{not json}\n", "line 1: not valid JSON"),
        ("a.jsonl", '{"question": "1+1"}\n', "cannot use the fields"),
        ("a.jsonl", "\n\n", "no usable sequence"),
        ("a.txt", "", "no usable sequence"),
        ("a.csv", "x", "unknown kind"),
    ],
)
def test_unusable_calibration_is_refused(
    name: str, content: str, sentence: str, request_for: Build, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    options = CalibrationOptions(source=str(tmp_path / name))

    request = request_for(calibration=options)
    with pytest.raises(CalibrationError, match=sentence):
        run_export(request, SilentReporter())

    assert not request.output.exists()


def test_verify_finds_a_changed_byte(request_for: Build) -> None:
    request = request_for()
    gguf = export(request)
    data = bytearray(gguf.read_bytes())
    data[-1000] ^= 1
    gguf.write_bytes(bytes(data))

    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        run_verify(request.output, SilentReporter())


def test_verify_finds_numbers_that_are_not_the_quantizers(request_for: Build) -> None:
    """Even when the file's own hash was brought up to date."""
    request = request_for()
    gguf = export(request)
    data = bytearray(gguf.read_bytes())
    data[-1000] ^= 1
    gguf.write_bytes(bytes(data))
    from tightfit.export.manifest import hash_file

    path = request.output / "tightfit.json"
    manifest = json.loads(path.read_text())
    manifest["artifacts"][0]["files"] = [dataclasses.asdict(hash_file(gguf))]
    path.write_text(json.dumps(manifest))

    with pytest.raises(ArtifactError, match="not the quantizer's numbers"):
        run_verify(request.output, SilentReporter())
