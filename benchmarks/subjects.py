"""The models that quality is measured on, with calibration and evaluation sequences.

The two sets of sequences are disjoint.
"""

import dataclasses
from pathlib import Path

from support.smollm2 import smollm2_checkpoint

from tightfit.calib.calibration import CalibrationOptions, CalibrationSet, load_calibration
from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.locate import EMBEDDED_NAME, locate_model
from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.drift.data.problem import Problem
from tightfit.drift.data.subset import load_subset, parse_spec
from tightfit.drift.measures.tokens import TokenSample
from tightfit.pipeline.lossless import lossless_gguf
from tightfit.runtimes.llamacpp import LlamaCpp

WIKITEXT = Path(__file__).parents[2] / "shared" / "data" / "wikitext2_test.raw"
CONTEXT_TOKENS = 1024
ANSWER_TOKENS = 512
SEQUENCE_TOKENS = 512
CALIBRATION_SEQUENCES = 16
EVALUATION_SEQUENCES = 12
TINY_TRACES = 64


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model with its calibration and its evaluation sequences, which are disjoint."""

    name: str
    checkpoint: Checkpoint
    calibration: CalibrationSet
    evaluation: tuple[TokenSample, ...]
    problems: tuple[Problem, ...]
    """Held-out problems to solve; empty for a model that solves none."""
    text: str
    """What the sequences are, for the document."""


def tiny_r1() -> Subject:
    """The embedded model: embedded calibration, its own answers to held-out problems."""
    checkpoint = open_checkpoint(locate_model(EMBEDDED_NAME))
    tokenizer = load_tokenizer(checkpoint.path)
    problems = load_subset(parse_spec("embedded")).problems
    step = len(problems) // TINY_TRACES
    prompts = [prompt_ids(tokenizer, problem.problem) for problem in problems[::step]][:TINY_TRACES]
    with lossless_gguf(checkpoint) as path, LlamaCpp(path, context_tokens=CONTEXT_TOKENS) as model:
        answers = model.generate(prompts, max_tokens=ANSWER_TOKENS, seed=0)
    return Subject(
        name=EMBEDDED_NAME,
        checkpoint=checkpoint,
        calibration=load_calibration(tokenizer, CalibrationOptions()),
        evaluation=tuple(
            TokenSample(tokens=(*prompt, *answer.token_ids), first_scored=len(prompt))
            for prompt, answer in zip(prompts, answers, strict=True)
        ),
        problems=problems,
        text="Calibration: the embedded set. KL: on its own greedy answers to "
        f"{TINY_TRACES} held-out problems. Solved: of all {len(problems)}, greedily",
    )


def smollm2(folder: Path) -> Subject:
    """SmolLM2-135M: WikiText-2, calibrated on its first part and evaluated on its last."""
    checkpoint = open_checkpoint(smollm2_checkpoint(folder / "SmolLM2-135M-Instruct"))
    tokenizer = load_tokenizer(checkpoint.path)
    calibration = folder / "calibration.txt"
    text = WIKITEXT.read_text(encoding="utf-8")
    calibration.write_text(text[: len(text) // 2], encoding="utf-8")
    ids = tokenizer.encode(text[len(text) // 2 :], add_special_tokens=False)
    options = CalibrationOptions(
        source=str(calibration), samples=CALIBRATION_SEQUENCES, max_tokens=SEQUENCE_TOKENS
    )
    return Subject(
        name="SmolLM2-135M-Instruct",
        checkpoint=checkpoint,
        calibration=load_calibration(tokenizer, options),
        evaluation=tuple(
            TokenSample(tokens=tuple(ids[start : start + SEQUENCE_TOKENS]), first_scored=1)
            for start in range(0, EVALUATION_SEQUENCES * SEQUENCE_TOKENS, SEQUENCE_TOKENS)
        ),
        problems=(),
        text=f"WikiText-2: {CALIBRATION_SEQUENCES} sequences of {SEQUENCE_TOKENS} tokens from its "
        f"first half for calibration, {EVALUATION_SEQUENCES} from its second for evaluation",
    )
