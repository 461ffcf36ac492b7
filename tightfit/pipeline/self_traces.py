"""Calibration on the model's own reasoning: `--calib self:n=64`.

The unquantized model answers the embedded problems in llama.cpp, sampled as DeepSeek recommends,
and its traces become the calibration set. They lie in the job directory, so an interrupted job
continues with the same ones.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tightfit.calib.calibration import (
    EMBEDDED,
    CalibrationOptions,
    CalibrationSample,
    CalibrationSet,
    choose_samples,
)
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.tokenizer import prompt_ids
from tightfit.errors import UsageError
from tightfit.files import write_text_whole
from tightfit.pipeline.lossless import lossless_gguf
from tightfit.reporter import Reporter
from tightfit.runtimes.llamacpp import LlamaCpp

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEMPERATURE = 0.6
TOP_P = 0.95
"""DeepSeek's recommended sampling (model card of DeepSeek-R1, "Usage Recommendations")."""
_SPEC = re.compile(r"self(?::n=(\d+))?")
_DEFAULT_TRACES = 64
_TRACES_FILE = "traces.json"


def is_self(source: str) -> bool:
    """Whether `--calib` asks for the model's own traces."""
    return source == "self" or source.startswith("self:")


def self_calibration(
    checkpoint: Checkpoint,
    tokenizer: "PreTrainedTokenizerFast",
    options: CalibrationOptions,
    folder: Path,
    reporter: Reporter,
) -> CalibrationSet:
    """The model's traces, generated once and kept in `folder`."""
    file = folder / _TRACES_FILE
    if not file.exists():
        samples = _generate(checkpoint, tokenizer, options, folder, reporter)
        text = json.dumps([[sample.completion_start, list(sample.ids)] for sample in samples])
        write_text_whole(file, text)
    kept = [
        CalibrationSample(ids=tuple(ids), completion_start=start)
        for start, ids in json.loads(file.read_text())
    ]
    return choose_samples(kept, options)


def _generate(
    checkpoint: Checkpoint,
    tokenizer: "PreTrainedTokenizerFast",
    options: CalibrationOptions,
    folder: Path,
    reporter: Reporter,
) -> list[CalibrationSample]:
    problems = [json.loads(line)["problem"] for line in EMBEDDED.read_text("utf-8").splitlines()]
    n_traces = _traces(options.source, len(problems))
    prompts = [prompt_ids(tokenizer, problem) for problem in problems[:n_traces]]
    room = options.max_tokens - max(map(len, prompts))
    if room < 1:
        raise UsageError(
            f"--calib-length {options.max_tokens} leaves no room for an answer",
            allowed=f"more than {max(map(len, prompts))} tokens, the longest problem",
            hint="raise --calib-length",
        )
    reporter.stage(f"Generating {n_traces} reasoning traces with the unquantized model")
    with (
        lossless_gguf(checkpoint, folder) as path,
        LlamaCpp(path, context_tokens=options.max_tokens) as model,
        reporter.progress(n_traces, "traces") as progress,
    ):
        generations = model.generate(
            prompts,
            max_tokens=room,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            seed=options.seed,
            on_finished=lambda _index, _answer: progress.advance(1),
        )
    return [
        CalibrationSample(ids=(*prompt, *answer.token_ids), completion_start=len(prompt))
        for prompt, answer in zip(prompts, generations, strict=True)
    ]


def _traces(source: str, n_problems: int) -> int:
    match = _SPEC.fullmatch(source)
    wanted = int(match[1] or _DEFAULT_TRACES) if match else 0
    if not 1 <= wanted <= n_problems:
        raise UsageError(
            f"--calib {source} asks for traces that cannot be made",
            allowed=f"self:n=1 to self:n={n_problems} (the embedded problems)",
            hint="e.g. --calib self:n=64",
        )
    return wanted
