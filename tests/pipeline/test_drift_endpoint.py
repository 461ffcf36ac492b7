"""The drift of what a server runs: the unquantized model itself, behind OpenAI's API."""

import pytest
import torch
from support.completion_server import Behaviour, serve
from support.tiny_r1 import TINY_R1
from transformers import Qwen2ForCausalLM

from tightfit.drift.gate import Outcome
from tightfit.pipeline.drift import DriftRequest, ProtocolChoice, run_drift
from tightfit.reporter import SilentReporter
from tightfit.runtimes.tokenizer import FolderTokenizer


@pytest.fixture(scope="module")
def logits():
    model = Qwen2ForCausalLM.from_pretrained(TINY_R1, dtype=torch.float32).eval()

    @torch.inference_mode()
    def compute(tokens):
        return model(torch.tensor([list(tokens)])).logits[0].double().numpy()

    return compute


def measure(logits, behaviour):
    tokenizer = FolderTokenizer(TINY_R1)
    with serve(logits, tokenizer, behaviour) as server:
        request = DriftRequest(
            artifact=None,
            baseline=None,
            endpoint=server.url,
            subset="embedded:n=10",
            protocol=ProtocolChoice(max_tokens=60),
        )
        (result,) = run_drift(request, SilentReporter())
    return result.report


def test_a_server_with_logprobs_is_measured_in_full(logits):
    report = measure(logits, Behaviour(max_model_len=1024))

    assert (report.artifact.format, report.artifact.name) == ("endpoint", "tiny")
    assert report.tokens is not None
    # Of most positions twenty tokens hold nearly everything; what they miss counts as one.
    assert report.tokens.kl_mean_nats < 1e-5
    assert report.tokens.top1_agreement == 1.0
    assert report.accuracy.baseline_only + report.accuracy.artifact_only <= 1
    assert report.accuracy.n == 10


def test_without_logprobs_accuracy_decides_and_the_report_says_so(logits):
    report = measure(logits, Behaviour(max_model_len=1024, scores="ignored"))

    assert report.tokens is None
    assert report.noise_floor is None
    assert report.tokens_absent
    assert report.decision.outcome is Outcome.INCONCLUSIVE  # ten problems
    assert any("KL" in finding.reason for finding in report.decision.findings)
