"""Drift reports made by hand, for what reads them."""

import dataclasses

from tightfit.drift.gate import Finding, GateDecision, Limits, Outcome
from tightfit.drift.measures.reasoning import Reasoning, ReasoningHealth
from tightfit.drift.measures.tokens import Bin, ConfidentTokens, TokenDrift
from tightfit.drift.measures.versions import VERSIONS
from tightfit.drift.protocol import PROTOCOLS
from tightfit.drift.report import (
    SCHEMA_VERSION,
    ArtifactFacts,
    BaselineFacts,
    DataFacts,
    DriftReport,
    Flip,
)
from tightfit.drift.statistics.paired import PairedAccuracy
from tightfit.runtimes.results import SystemInfo

HEALTH = ReasoningHealth(
    n_answers=64,
    unclosed=0.03,
    truncated=0.02,
    looping=0.01,
    repetition=0.04,
    mixing=0.0,
    mean_tokens=812.5,
)


def token_drift(kl: float = 0.004) -> TokenDrift:
    """Drift with that mean KL."""
    return TokenDrift(
        n_samples=64,
        n_tokens=52_000,
        kl_mean_nats=kl,
        kl_mean_stderr_nats=kl / 10,
        kl_interval_nats=(kl * 0.8, kl * 1.2),
        kl_median_nats=kl / 40,
        kl_p90_nats=kl * 2,
        kl_p99_nats=kl * 15,
        kl_p999_nats=kl * 60,
        kl_max_nats=kl * 300,
        confident=ConfidentTokens(
            n_tokens=40_000, kl_mean_nats=kl / 8, kl_p99_nats=kl, top1_agreement=0.9998
        ),
        top1_agreement=0.985,
        top1_agreement_stderr=0.001,
        baseline_perplexity=1.312,
        artifact_perplexity=1.319,
        tail_mass=2e-6,
        by_position=tuple(
            Bin(
                low=2.0**power,
                high=2.0 ** (power + 1),
                n_tokens=64 * 2**power,
                kl_mean_nats=kl * (1 + power / 10),
                top1_agreement=0.99 - power / 1000,
            )
            for power in range(9)
        ),
        by_kl=tuple(
            Bin(
                low=10.0**power,
                high=10.0 ** (power + 1),
                n_tokens=n,
                kl_mean_nats=2 * 10.0**power,
                top1_agreement=1.0 if power < -3 else 0.7,
            )
            for power, n in zip(
                range(-8, 1),
                (9000, 14000, 12000, 8000, 5000, 2500, 1000, 400, 100),
                strict=True,
            )
        ),
    )


def report(
    outcome: Outcome = Outcome.PASS,
    *,
    name: str = "model-Q4_K_M.gguf",
    kl: float = 0.004,
    bits_per_weight: float | None = 4.85,
) -> DriftReport:
    """A whole report."""
    return DriftReport(
        schema_version=SCHEMA_VERSION,
        tightfit_version="0.1.0",
        versions=dict(VERSIONS),
        command="tightfit drift out --baseline r1-distill-qwen-7b --subset math500:n=64",
        artifact=ArtifactFacts(
            name=name,
            format="gguf",
            scheme="q4_k_m",
            bits_per_weight=bits_per_weight,
            size_bytes=4_683_073_536,
            sha256="ab" * 32,
            weights_sha256="ef" * 32,
        ),
        baseline=BaselineFacts(
            id="deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
            revision="916b56a44061fd5cd7d6a8fb632557ed4f724f60",
            content_sha256=None,
            runtime="llama.cpp (xllamacpp 2026.10.11549)",
            logits="transformers 5.23.0, float32",
            cached=False,
        ),
        data=DataFacts(
            subset="math500:n=64,level=4-5", source="math500", n_problems=64, sha256="cd" * 32
        ),
        protocol=PROTOCOLS["deepseek"],
        runtime=SystemInfo(
            label="llama.cpp (xllamacpp 2026.10.11549)",
            device="cpu",
            threads=2,
            context_tokens=32_768,
            kv_type="f16",
            kv_bytes=1 << 30,
            facts={"cpu_features": "AVX2 = 1"},
        ),
        tokens=token_drift(kl),
        tokens_absent="",
        noise_floor=token_drift(kl / 100),
        accuracy=PairedAccuracy(
            n=64,
            samples=1,
            baseline_accuracy=60 / 64,
            artifact_accuracy=58 / 64,
            baseline_interval=(0.85, 0.975),
            artifact_interval=(0.81, 0.956),
            baseline_only=3,
            artifact_only=1,
            drop_points=3.125,
            drop_interval_points=(-3.9, 11.2),
            bootstrap_interval_points=(-3.1, 9.4),
            mcnemar_p=0.625,
        ),
        baseline_grades={"correct": 60, "wrong": 3, "no_answer": 0, "truncated": 1, "timeout": 0},
        artifact_grades={"correct": 58, "wrong": 3, "no_answer": 1, "truncated": 1, "timeout": 1},
        reasoning=Reasoning(
            baseline=HEALTH,
            artifact=dataclasses.replace(HEALTH, unclosed=0.05, mean_tokens=861.0),
            length_ratio=1.04,
            length_ratio_interval=(0.97, 1.11),
        ),
        flips=(
            Flip(
                unique_id="test/algebra/2584.json",
                problem="If $f(x) = \\frac{3x-2}{x-2}$, what is $f(-2) < 3$?",
                gold="\\frac{14}{3}",
                lost=True,
                baseline_grade="correct",
                baseline_text="We have $-6-2=-8$.\n</think>\n\n"
                "So \\[f(-2)=\\boxed{\\frac{14}{3}}\\]",
                artifact_grade="wrong",
                artifact_text="<script>alert(1)</script> it is 2 & $x<3$\n</think>\n\\boxed{2}",
            ),
        ),
        limits=Limits(),
        decision=GateDecision(
            outcome=outcome,
            findings=(
                Finding(
                    figure="accuracy drop",
                    outcome=outcome,
                    reason="accuracy drop +3.12 points [-3.90, +11.20] on 64 problems, limit 2",
                    needed=420 if outcome is Outcome.INCONCLUSIVE else None,
                ),
                Finding(
                    figure="mean KL",
                    outcome=Outcome.PASS,
                    reason="mean KL 0.004 nats [0.0032, 0.0048] on 64 traces, limit 0.05: within",
                ),
            ),
        ),
    )
