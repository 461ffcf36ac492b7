"""The command in a manifest asks for the same export again."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tightfit.calib.calibration import CalibrationOptions
from tightfit.calib.locate import ModelSource
from tightfit.calib.precision import Precision as CalibrationPrecision
from tightfit.cli.main import run
from tightfit.errors import UsageError
from tightfit.export.onnx.naming import OnnxLayout
from tightfit.export.onnx.options import Dialect, Precision
from tightfit.pipeline import export as exporting
from tightfit.pipeline.command import export_command
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.quant.algorithms.gptq import GptqSettings
from tightfit.quant.algorithms.ordering import Order
from tightfit.targets.allocation.budget import Budget
from tightfit.targets.workload import CacheType, Split

USUAL = ExportRequest(model=None, target="rtx3060-8gb", output=Path("out"))
CHANGES: dict[str, dict[str, object]] = {
    "usual": {},
    "formats": {"formats": ("gguf", "gptq"), "scheme": "gptq-int4-g128"},
    "budget": {"budget": Budget(bits_per_weight=4.37)},
    "gib": {"budget": Budget(file_gib=1.5)},
    "ends": {"head": "q6_k", "embedding": "q8_0"},
    "method": {
        "method": Method(
            algorithm=Algorithm.GPTQ,
            gptq=GptqSettings(order=Order.GROUP_AWARE),
            from_original=True,
            precision=CalibrationPrecision.HIGHEST,
        )
    },
    "workload": {
        "context_tokens": 512,
        "n_sequences": 3,
        "cache_type": CacheType.Q8_0,
        "split": Split.TENSOR,
    },
    "calibration": {
        "calibration": CalibrationOptions(source="t.jsonl", samples=9, max_tokens=77, seed=5)
    },
    "self": {"calibration": CalibrationOptions(source="self:n=8")},
    "none": {
        "calibration": CalibrationOptions(source="none"),
        "method": Method(algorithm=Algorithm.RTN),
    },
    "onnx": {
        "formats": ("onnx",),
        "onnx_dialect": Dialect.STANDARD,
        "onnx_precision": Precision.FLOAT32,
        "onnx_layout": OnnxLayout.TRANSFORMERS_JS,
    },
    "engine": {"formats": ("tensorrt",), "capabilities": ("8.9", "12.0")},
    "files": {"split_max_bytes": 3_500_000_000, "keep_mtp": True, "device": "cuda:1"},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[str, ...]], ExportRequest]:
    """What the command line asks the pipeline for."""

    def parse(words: tuple[str, ...]) -> ExportRequest:
        seen: list[ExportRequest] = []

        def record(request: ExportRequest, _reporter: object) -> None:
            seen.append(request)
            raise UsageError("seen")

        monkeypatch.setattr(exporting, "run_export", record)
        run(list(words))
        (request,) = seen
        return request

    return parse


@pytest.mark.parametrize("name", CHANGES)
def test_it_asks_for_the_same(name: str, asked: Callable[[tuple[str, ...]], ExportRequest]) -> None:
    request = dataclasses.replace(USUAL, **CHANGES[name])
    command = export_command(request, ModelSource(path=Path(), id="tiny-r1"))
    again = asked(command)
    assert dataclasses.replace(again, model=None, output=Path("out")) == request


def test_no_path_of_the_machine_is_in_it() -> None:
    request = dataclasses.replace(
        USUAL,
        target=None,
        target_file=Path("/home/me/card.toml"),
        calibration=CalibrationOptions(source="/home/me/traces.jsonl"),
    )
    words = export_command(request, ModelSource(path=Path("/home/me/model"), id="model"))
    assert words[:4] == ("export", "./model", "--target-file", "card.toml")
    assert not any("/home" in word for word in words)
    matrix = CalibrationOptions(source="imatrix:/home/me/im.gguf")
    words = export_command(
        dataclasses.replace(USUAL, calibration=matrix),
        ModelSource(path=Path(), id="deepseek-ai/DeepSeek-R1", revision="a" * 40),
    )
    assert words[:4] == ("export", "r1", "--revision", "a" * 40)
    assert "imatrix:im.gguf" in words
