"""The main job on trained models: the model's own traces, and SmolLM2 with its odd widths."""

from pathlib import Path

import pytest
from support.smollm2 import smollm2_checkpoint

from tightfit.calib.calibration import CalibrationOptions
from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.errors import UsageError
from tightfit.export.gguf.readback import read_tensors
from tightfit.export.manifest import read_manifest
from tightfit.pipeline.export import run_export
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter
from tightfit.runtimes.llamacpp import LlamaCpp
from tightfit.verify.run import run_verify

pytestmark = pytest.mark.slow

ARTICLE = "The river rises in the hills and flows north through three towns to the sea. " * 40


def test_smollm2_falls_back_verifies_and_still_speaks(tmp_path: Path) -> None:
    """Hidden width 576: attention cannot take K-quants, the MLP's 1536 columns can."""
    model = smollm2_checkpoint(tmp_path / "SmolLM2")
    (tmp_path / "article.txt").write_text(ARTICLE)
    calibration = CalibrationOptions(
        source=str(tmp_path / "article.txt"), samples=4, max_tokens=128
    )
    output = tmp_path / "out"
    run_export(
        ExportRequest(
            model=str(model),
            target="rtx3060-8gb",
            output=output,
            scheme="q4_k_m",
            # The search for AWQ scales takes minutes on one thread.
            method=Method(algorithm=Algorithm.GPTQ),
            calibration=calibration,
        ),
        SilentReporter(),
    )

    manifest = run_verify(output, SilentReporter())

    assert manifest.artifacts[0].verification is not None
    assert manifest.artifacts[0].verification.passed
    gguf = output / manifest.artifacts[0].files[0].name
    kinds = {tensor.name: tensor.ggml_type.name for tensor in read_tensors(gguf)}
    assert kinds["blk.0.attn_q.weight"] == "Q5_0"
    assert kinds["blk.5.ffn_down.weight"] in ("Q4_K", "Q6_K")
    tokenizer = load_tokenizer(model)
    question = prompt_ids(tokenizer, "What is the capital of France?")[:-2]
    with LlamaCpp(gguf, context_tokens=128) as runtime:
        (answer,) = runtime.generate([question], max_tokens=24, seed=0)
    assert "Paris" in answer.text


def test_calibration_on_the_models_own_traces(tmp_path: Path) -> None:
    def export(folder: Path) -> bytes:
        request = ExportRequest(
            model=None,
            target="rtx3060-8gb",
            output=folder,
            scheme="q4_0",
            calibration=CalibrationOptions(source="self:n=12", max_tokens=256),
        )
        manifest = run_export(request, SilentReporter()).manifest
        assert manifest is not None
        assert manifest.calibration is not None
        assert manifest.calibration.source == "self:n=12"
        assert manifest.calibration.samples == 12
        assert manifest.calibration.tokens > 12 * 30
        return (folder / manifest.artifacts[0].files[0].name).read_bytes()

    assert export(tmp_path / "a") == export(tmp_path / "b")
    assert read_manifest(tmp_path / "a") == read_manifest(tmp_path / "b")


@pytest.mark.parametrize(
    ("source", "max_tokens", "sentence"),
    [
        ("self:n=0", 256, "traces that cannot be made"),
        ("self:n=9999", 256, "traces that cannot be made"),
        ("self:64", 256, "traces that cannot be made"),
        ("self:n=4", 8, "leaves no room for an answer"),
    ],
)
def test_impossible_traces_are_refused(
    source: str, max_tokens: int, sentence: str, tmp_path: Path
) -> None:
    request = ExportRequest(
        model=None,
        target="rtx3060-8gb",
        output=tmp_path / "out",
        calibration=CalibrationOptions(source=source, max_tokens=max_tokens),
    )

    with pytest.raises(UsageError, match=sentence):
        run_export(request, SilentReporter())
