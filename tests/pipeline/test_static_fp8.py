"""Static FP8 from the command line to onnxruntime: calibrated input scales are in the file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tightfit.calib.architecture import architecture_of
from tightfit.calib.calibration import load_calibration
from tightfit.calib.decoder import Decoder
from tightfit.calib.tokenizer import load_tokenizer
from tightfit.errors import UsageError
from tightfit.export.manifest import read_manifest
from tightfit.export.onnx.options import Dialect
from tightfit.export.onnx.readback import read_input_scales, read_weights
from tightfit.pipeline.export import run_export
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter
from tightfit.verify.run import run_verify

Build = Callable[..., ExportRequest]
LINEARS = 2 * 7
FLOAT8_MAX = 448.0


def export(request: ExportRequest) -> Path:
    run_export(request, SilentReporter())
    return request.output / read_manifest(request.output).artifacts[0].files[0].name


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("target", ["rtx4090-24gb", "cpu-16gb"])
def test_static_fp8_verifies(request_for: Build, target: str, dialect: Dialect) -> None:
    request = request_for(
        formats=("onnx",), scheme="fp8-channel-static", target=target, onnx_dialect=dialect
    )
    file = export(request)

    (artifact,) = run_verify(request.output, SilentReporter()).artifacts

    assert artifact.scheme.name == "fp8-channel-static"
    assert artifact.graph is not None
    assert artifact.graph.precision == ("float32" if target == "cpu-16gb" else "float16")
    verification = artifact.verification
    assert verification is not None
    assert verification.passed
    assert verification.exact_tensors == len(artifact.tensors)
    scales = read_input_scales(file)
    # The head reads the final norm's output, whose scale is calibrated as well.
    assert len(scales) == LINEARS + 1
    assert all(0 < scale < 1 for scale in scales.values())
    # Linears that read the same share its scale, and nothing else does.
    assert len(set(scales.values())) == 2 * 4 + 1


def test_the_scales_cover_what_calibration_saw(request_for: Build, qwen2: Path) -> None:
    """The scale of the first input, from the model itself: its largest value goes to 448."""
    request = request_for(formats=("onnx",), scheme="fp8-channel-static", target="cpu-16gb")
    scales = read_input_scales(export(request))
    seen = scales["model.layers.0.self_attn.q_proj.weight"] * FLOAT8_MAX

    model = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32)
    largest: list[float] = []
    model.model.layers[0].input_layernorm.register_forward_hook(
        lambda _module, _inputs, output: largest.append(float(output.abs().max()))
    )
    calibration = load_calibration(load_tokenizer(qwen2), request.calibration)
    with torch.inference_mode():
        for sample in calibration.samples:
            model(torch.tensor([sample.ids]), use_cache=False)
    # AWQ may move some of it into the weights, and a search may clip: not by orders.
    assert seen == pytest.approx(max(largest), rel=0.3)


def test_static_differs_from_weight_only(request_for: Build, qwen2: Path, tmp_path: Path) -> None:
    """The reference that parity uses rounds the activations: it is not the weights alone."""
    static = export(request_for(formats=("onnx",), scheme="fp8-channel-static", target="cpu-16gb"))
    stored = {weight.name: weight for weight in read_weights(static)}

    def load(name: str) -> torch.Tensor:
        return torch.from_numpy(stored[name].values())

    decoder = Decoder(qwen2, architecture_of("qwen2"), torch.device("cpu"))
    ids = [list(range(5, 45))]
    (with_scales,) = decoder.logits(ids, load, read_input_scales(static))
    (without,) = decoder.logits(ids, load, {})
    spread = float(without.std())
    assert 1e-3 * spread < float((with_scales - without).abs().mean()) < spread
    assert np.isfinite(with_scales.numpy()).all()


def test_a_gguf_cannot_hold_it(request_for: Build) -> None:
    with pytest.raises(UsageError, match="fp8"):
        run_export(request_for(formats=("gguf",), scheme="fp8-channel-static"), SilentReporter())
