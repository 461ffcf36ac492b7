"""`tightfit drift`: the shipped files in their runtimes against the unquantized checkpoint.

All models answer the same problems, the baseline as a lossless GGUF of its checkpoint in llama.cpp,
and the accuracy of each artifact is compared with the baseline's, problem by problem. The
baseline's own answers are the reasoning traces on which token-level drift is measured: logits of
each artifact in its runtime against those of transformers on the checkpoint, so an error of the
conversion shows as drift too. What the baseline costs is spent once for all artifacts.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.decoder import Decoder
from tightfit.calib.locate import locate_model
from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.calib.validate import validate
from tightfit.drift.gate import MAX_DROP_POINTS, MAX_KL_NATS, GateDecision, decide
from tightfit.drift.grading import Grade, require_grader
from tightfit.drift.measure import (
    AccuracyResult,
    Logits,
    ModelAnswers,
    Protocol,
    TokenSample,
    measure_accuracy,
    measure_token_drift,
)
from tightfit.drift.metrics import TokenDrift
from tightfit.drift.statistics import PairedAccuracy
from tightfit.drift.subset import EMBEDDED, Subset, load_subset, parse_spec
from tightfit.errors import DriftError
from tightfit.pipeline.device import usable_device
from tightfit.pipeline.drift_subjects import (
    find_subjects,
    record_reports,
    warn_of_another_baseline,
)
from tightfit.pipeline.lossless import lossless_gguf
from tightfit.reporter import Reporter
from tightfit.runtimes.base import Runtime
from tightfit.runtimes.llamacpp import LlamaCpp
from tightfit.runtimes.results import SystemInfo
from tightfit.targets.memory import kv_cache_bytes

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""DeepSeek's instruction for mathematical problems; tiny-r1 was trained without any."""
MAX_TOKENS = 8192
"""Tokens of an answer at most by default: the context that `plan` keeps room for."""
MAX_TRACES = 64
"""Traces that token drift is measured on: their mean KL is known to a few percent by then."""
MAX_PARALLEL = 16
KV_BUDGET_BYTES = 2 << 30
"""KV cache of all answers under way; fewer run in parallel when the context is long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftRequest:
    """One `tightfit drift`."""

    artifact: Path
    """Folder of an export, or a .gguf or .onnx file."""
    baseline: str | None
    """The unquantized checkpoint: folder, Hub id or registered name; None: the embedded model."""
    revision: str | None = None
    formats: tuple[str, ...] = ()
    """Artifacts of the folder to measure; empty: all that run on this machine."""
    subset: str = EMBEDDED
    max_drop_points: float = MAX_DROP_POINTS
    max_kl_nats: float = MAX_KL_NATS
    max_tokens: int | None = None
    """Tokens of an answer at most; None: `MAX_TOKENS`, or what the model's context leaves."""
    temperature: float = 0.0
    """0 is greedy: no sampling noise, and the same answers every time."""
    top_p: float = 1.0
    seed: int = 0
    device: str = "cpu"
    """Where transformers computes the baseline's logits."""
    provider: str = "cpu"
    """onnxruntime's execution provider."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftReport:
    """What was measured and what the gate says."""

    format: str
    artifact: str
    """File name."""
    baseline: str
    subset: str
    subset_sha256: str
    runtime: SystemInfo
    protocol: Protocol
    tokens: TokenDrift
    accuracy: PairedAccuracy
    baseline_grades: Mapping[str, int]
    """Problems by grade."""
    artifact_grades: Mapping[str, int]
    max_drop_points: float
    max_kl_nats: float
    decision: GateDecision


def run_drift(request: DriftRequest, reporter: Reporter) -> tuple[DriftReport, ...]:
    """Measure the drift of artifacts and judge each; the reports go into their manifest.

    Raises `ArtifactError`, `CheckpointError`, `DriftError`, `MissingPackageError`,
    `RuntimeFailureError` and `UsageError`.
    """
    require_grader()
    subjects = find_subjects(request.artifact, request.formats, reporter)
    device = usable_device(request.device)
    reporter.stage("Reading the baseline checkpoint and the problems")
    subset = load_subset(parse_spec(request.subset))
    checkpoint = open_checkpoint(locate_model(request.baseline, revision=request.revision))
    validate(checkpoint, checkpoint.architecture)
    warn_of_another_baseline(request.artifact, checkpoint, reporter)
    prompts = _prompts(checkpoint, subset)
    protocol, context = _protocol(request, checkpoint, prompts)
    with contextlib.ExitStack() as stack:
        runtimes: list[Runtime] = []
        for subject in subjects:
            opened = subject.open(context_tokens=context, provider=request.provider)
            runtimes.append(stack.enter_context(opened))
            _check_tokenizer(opened, checkpoint, subset)
        answers = _answer(checkpoint, runtimes, subset, prompts, protocol, context, reporter)
        samples = _traces(prompts, answers.baseline)
        drifts = _compare_logits(checkpoint, device, runtimes, samples, reporter)
        infos = [runtime.system_info for runtime in runtimes]
    reports = tuple(
        DriftReport(
            format=subject.format,
            artifact=subject.path.name,
            baseline=checkpoint.source.id,
            subset=request.subset,
            subset_sha256=subset.sha256,
            runtime=info,
            protocol=protocol,
            tokens=tokens,
            accuracy=compared.paired,
            baseline_grades=_count_grades(answers.baseline),
            artifact_grades=_count_grades(compared.answers),
            max_drop_points=request.max_drop_points,
            max_kl_nats=request.max_kl_nats,
            decision=decide(
                compared.paired,
                tokens,
                max_drop_points=request.max_drop_points,
                max_kl_nats=request.max_kl_nats,
            ),
        )
        for subject, info, compared, tokens in zip(
            subjects, infos, answers.artifacts, drifts, strict=True
        )
    )
    recorded = {report.format: dataclasses.asdict(report) for report in reports}
    record_reports(request.artifact, recorded, reporter)
    return reports


def _prompts(checkpoint: Checkpoint, subset: Subset) -> list[list[int]]:
    tokenizer = load_tokenizer(checkpoint.path)
    suffix = "" if subset.spec.source == EMBEDDED else f"\n{INSTRUCTION}"
    return [prompt_ids(tokenizer, problem.problem + suffix) for problem in subset.problems]


def _protocol(
    request: DriftRequest, checkpoint: Checkpoint, prompts: Sequence[Sequence[int]]
) -> tuple[Protocol, int]:
    """How answers are generated, and the context that they need."""
    longest = max(map(len, prompts))
    room = checkpoint.dimensions.max_position_embeddings - longest
    wanted = request.max_tokens or min(MAX_TOKENS, room)
    if not 1 <= wanted <= room:
        raise DriftError(
            f"answers of {wanted} tokens do not go with prompts of up to {longest}",
            allowed=f"1 to {room} tokens: the model's context is "
            f"{checkpoint.dimensions.max_position_embeddings}",
            hint="lower --max-tokens",
        )
    context = longest + wanted
    fitting = KV_BUDGET_BYTES // kv_cache_bytes(checkpoint.dimensions, context)
    protocol = Protocol(
        max_tokens=wanted,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        parallel=max(1, min(MAX_PARALLEL, fitting, len(prompts))),
    )
    return protocol, context


def _check_tokenizer(artifact: Runtime, checkpoint: Checkpoint, subset: Subset) -> None:
    """Refuse a baseline whose tokens mean something else to the artifact."""
    text = subset.problems[0].problem
    ours = load_tokenizer(checkpoint.path).encode(text, add_special_tokens=False)
    theirs = artifact.tokenize(text)
    if ours != theirs or artifact.vocab_size != checkpoint.dimensions.vocab_size:
        raise DriftError(
            f"{artifact.path.name} and {checkpoint.source.id} have different tokenizers",
            allowed="the baseline must be the checkpoint that the artifact was made from",
            hint="name that checkpoint with --baseline",
        )


def _answer(
    checkpoint: Checkpoint,
    artifacts: Sequence[Runtime],
    subset: Subset,
    prompts: Sequence[Sequence[int]],
    protocol: Protocol,
    context: int,
    reporter: Reporter,
) -> AccuracyResult:
    names = "the artifact" if len(artifacts) == 1 else f"{len(artifacts)} artifacts"
    reporter.stage(f"Solving {len(prompts)} problems with the baseline and {names}")
    with (
        lossless_gguf(checkpoint) as path,
        LlamaCpp(path, context_tokens=context) as baseline,
        reporter.progress((1 + len(artifacts)) * len(prompts), "answers") as progress,
    ):
        return measure_accuracy(
            baseline,
            artifacts,
            subset.problems,
            prompts,
            protocol,
            lambda _done, _total: progress.advance(1),
        )


def _compare_logits(
    checkpoint: Checkpoint,
    device: torch.device,
    artifacts: Sequence[Runtime],
    samples: Sequence[TokenSample],
    reporter: Reporter,
) -> tuple[TokenDrift, ...]:
    reporter.stage(f"Comparing logits on {len(samples)} of the baseline's own traces")
    with reporter.progress(len(samples), "traces") as progress:
        return measure_token_drift(
            _baseline_logits(checkpoint, samples, device),
            artifacts,
            samples,
            lambda _done, _total: progress.advance(1),
        )


def _traces(prompts: Sequence[Sequence[int]], answers: ModelAnswers) -> list[TokenSample]:
    """The baseline's answers behind their prompts, evenly spread over the problems."""
    written = [number for number, ids in enumerate(answers.token_ids) if ids]
    step = max(1, len(written) // MAX_TRACES)
    return [
        TokenSample(
            tokens=(*prompts[number], *answers.token_ids[number]),
            first_scored=len(prompts[number]),
        )
        for number in written[::step][:MAX_TRACES]
    ]


def _baseline_logits(
    checkpoint: Checkpoint, samples: Sequence[TokenSample], device: torch.device
) -> Logits:
    """Logits of transformers on the checkpoint, for the samples in their order."""
    decoder = Decoder(checkpoint.path, checkpoint.architecture, device)
    stream: Iterator[torch.Tensor] = decoder.logits(
        [sample.tokens for sample in samples], checkpoint.load
    )

    def following(_tokens: Sequence[int]) -> NDArray[np.float32]:
        return np.asarray(next(stream).cpu().numpy())

    return following


def _count_grades(answers: ModelAnswers) -> dict[str, int]:
    return {grade.value: answers.count(grade) for grade in Grade}
