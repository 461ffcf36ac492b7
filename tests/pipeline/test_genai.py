"""onnxruntime-genai runs what `export` wrote, and says what our runtime says."""

import os
from pathlib import Path

import numpy as np
import pytest

from tightfit.calib.calibration import CalibrationOptions
from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.pipeline.export import run_export
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter
from tightfit.runtimes.onnx import OnnxModel
from tightfit.runtimes.onnx.session import SessionOptions

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
og = pytest.importorskip("onnxruntime_genai")
QUESTIONS = ("What is $19 + 99$?", "What is $7 \\cdot 8$?", "Solve $3x + 4 = 19$.")
MAX_TOKENS = 100


@pytest.mark.parametrize(
    ("scheme", "target"),
    [
        ("gptq-int4-g128", "cpu-16gb"),
        pytest.param("gptq-int8-g32", "rtx3060-8gb", marks=pytest.mark.slow),
        pytest.param("awq-int4-g64-asym", "cpu-16gb", marks=pytest.mark.slow),
    ],
)
def test_an_exported_folder_generates_in_genai(tmp_path: Path, scheme: str, target: str) -> None:
    folder = tmp_path / "out"
    run_export(
        ExportRequest(
            model=None,
            target=target,
            output=folder,
            formats=("onnx",),
            scheme=scheme,
            calibration=CalibrationOptions(samples=8, max_tokens=128),
        ),
        SilentReporter(),
    )
    prompts = [prompt_ids(load_tokenizer(folder), question) for question in QUESTIONS]
    file = folder / "onnx" / "model.onnx"
    with OnnxModel(file, context_tokens=256, options=SessionOptions(threads=1)) as runtime:
        answers = runtime.generate(prompts, max_tokens=MAX_TOKENS, seed=0)

    model = og.Model(str(folder))

    for prompt, answer in zip(prompts, answers, strict=True):
        assert genai_greedy(model, prompt) == list(answer.token_ids)


def genai_greedy(model: object, prompt: list[int]) -> list[int]:
    """What follows the prompt, without the end token."""
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + MAX_TOKENS)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :]
