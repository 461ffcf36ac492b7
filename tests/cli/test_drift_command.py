"""`tightfit drift`, `drift baseline` and `drift compare` as their users see them."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from support.drift_reports import report

from tightfit.cli import drift as drift_cli
from tightfit.cli.main import run
from tightfit.drift.answers import Answer, ModelAnswers
from tightfit.drift.data.problem import Problem
from tightfit.drift.gate import MAX_DROP_POINTS, MAX_KL_NATS, Limits, Outcome
from tightfit.drift.grading import Grade
from tightfit.drift.report import DriftReport, write_reports
from tightfit.pipeline.drift import DriftRequest, DriftResult, ProtocolChoice
from tightfit.runtimes.results import StopReason

PROBLEM = Problem(
    unique_id="test/1", problem="What is $1+1$?", answer="2", original={"problem": "What is $1+1$?"}
)
ANSWERS = ModelAnswers(
    samples=1,
    answers=(
        Answer(
            problem=0,
            sample=0,
            token_ids=(5, 6),
            text="Two.\n</think>\n\\boxed{2}",
            stop=StopReason.END,
            grade=Grade.CORRECT,
        ),
    ),
)


def result(made: DriftReport) -> DriftResult:
    return DriftResult(
        report=made,
        problems=(PROBLEM,),
        prompts=("What is 1+1?<think>\n",),
        baseline=ANSWERS,
        artifact=ANSWERS,
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[DriftRequest]]:
    """Makes `run_drift` return these reports; the requests that it got."""

    def install(*reports: DriftReport) -> list[DriftRequest]:
        seen: list[DriftRequest] = []

        def run_drift(
            request: DriftRequest, _reporter: object, deliver: Callable[..., None]
        ) -> tuple[DriftResult, ...]:
            seen.append(request)
            results = tuple(map(result, reports))
            deliver(results)
            return results

        monkeypatch.setattr("tightfit.pipeline.drift.run_drift", run_drift)
        return seen

    return install


@pytest.mark.parametrize(
    ("outcome", "status"), [(Outcome.PASS, 0), (Outcome.FAIL, 3), (Outcome.INCONCLUSIVE, 5)]
)
def test_the_table_the_verdict_and_the_status(
    outcome: Outcome,
    status: int,
    measured: Callable[..., list[DriftRequest]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured(report(outcome))
    assert run(["drift", "here", "--baseline", "tiny-r1"]) == status
    shown = capsys.readouterr().out
    for part in (
        "93.8% [85.0, 97.5]",
        "90.6% [81.0, 95.6]",
        "1.3120",
        "4.00e-03 nats [3.20e-03, 4.80e-03]",
        "KL of the runtime alone",
        "4.00e-05 nats",
        "98.50%",
        "+3.12 points [-3.90, +11.20]",
        "3 lost, 1 won (McNemar p 0.62)",
        "thoughts never closed",
        "1.040 [0.970, 1.110]",
        outcome.upper(),
        "accuracy drop +3.12 points [-3.90, +11.20] on 64 problems, limit 2",
    ):
        assert part in shown
    assert run(["drift", "here", "--baseline", "tiny-r1", "--json"]) == status
    (document,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert document["decision"]["outcome"] == outcome
    assert document["accuracy"]["n"] == 64


def test_token_drift_that_was_not_measured_is_said(
    measured: Callable[..., list[DriftRequest]], capsys: pytest.CaptureFixture[str]
) -> None:
    measured(dataclasses.replace(report(), tokens=None, noise_floor=None, tokens_absent="none"))
    assert run(["drift", "here", "--baseline", "tiny-r1"]) == 0
    assert "perplexity" not in capsys.readouterr().out


def test_a_row_for_each_artifact_and_the_worst_status(
    measured: Callable[..., list[DriftRequest]], capsys: pytest.CaptureFixture[str]
) -> None:
    reports = [
        report(Outcome.PASS, name="a.gguf"),
        report(Outcome.FAIL, name="b.onnx"),
        report(Outcome.INCONCLUSIVE, name="c.engine", bits_per_weight=None),
    ]
    measured(*reports)
    assert run(["drift", "here", "--baseline", "tiny-r1"]) == 3
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line for line in shown.splitlines() if "90.6%" in line}
    for each in reports:
        assert each.decision.outcome.upper() in rows[each.artifact.name]
    assert "4.85" in rows["a.gguf"]
    assert "4.85" not in rows["c.engine"]


def test_every_option_reaches_the_job(measured: Callable[..., list[DriftRequest]]) -> None:
    seen = measured(report())
    line = (
        "drift a.gguf --baseline org/Model --revision abc --subset n=64 --dataset org/data "
        "--protocol deepseek --samples 4 --max-drop 1 --max-kl 0.01 --max-tokens 500 "
        "--temperature 0.7 --top-p 0.9 --seed 4 --sequential --baseline-cache b.zip --vllm "
        "--device cuda --provider cuda --format onnx,gguf"
    )
    assert run(line.split()) == 0
    (request,) = seen
    assert dataclasses.replace(request, command="") == DriftRequest(
        artifact=Path("a.gguf"),
        baseline="org/Model",
        revision="abc",
        subset="n=64",
        dataset="org/data",
        protocol=ProtocolChoice(
            name="deepseek", samples=4, max_tokens=500, temperature=0.7, top_p=0.9, seed=4
        ),
        limits=Limits(max_drop_points=1.0, max_kl_nats=0.01),
        sequential=True,
        baseline_cache=Path("b.zip"),
        vllm=True,
        device="cuda",
        provider="cuda",
        formats=("onnx", "gguf"),
        command="",
    )
    assert run(["drift", "--endpoint", "http://h/v1", "--model", "m", "--baseline", "b"]) == 0
    assert (seen[1].artifact, seen[1].endpoint, seen[1].endpoint_model) == (
        None,
        "http://h/v1",
        "m",
    )


def test_defaults_of_the_limits_are_those_of_the_gate() -> None:
    defaults = drift_cli.drift_command.__kwdefaults__ or {}
    values = drift_cli.drift_command.__defaults__ or ()
    assert {MAX_DROP_POINTS, MAX_KL_NATS} <= {
        value for value in (*values, *defaults.values()) if isinstance(value, float)
    }


def test_an_unknown_protocol_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drift", "a", "--baseline", "b", "--protocol", "fast"]) == 2
    assert "deepseek, greedy" in capsys.readouterr().err


def test_what_it_writes(measured: Callable[..., list[DriftRequest]], tmp_path: Path) -> None:
    measured(report(Outcome.FAIL))
    folder, junit = tmp_path / "made" / "report", tmp_path / "made" / "drift.xml"
    command = ["drift", "here", "--baseline", "tiny-r1", "--report", str(folder)]
    assert run([*command, "--junit", str(junit)]) == 3
    assert ElementTree.parse(junit).getroot().findall(".//failure")
    assert "</html>" in (folder / "drift.html").read_text(encoding="utf-8")
    assert json.loads((folder / "drift.json").read_text())["artifacts"]
    assert list(folder.glob("lm-eval/**/results_*.json"))
    assert list(folder.glob("lm-eval/**/samples_*.jsonl"))


def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    measured: Callable[..., list[DriftRequest]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = measured(report())
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "report"
    assert run(["drift", "here", "--baseline", "tiny-r1", "--report", str(place)]) == 1
    assert "cannot write into" in capsys.readouterr().err
    assert seen == []


def test_github_gets_a_summary_and_annotations(
    measured: Callable[..., list[DriftRequest]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured(report(Outcome.FAIL))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert run(["drift", "here", "--baseline", "tiny-r1", "--json"]) == 3
    shown = capsys.readouterr()
    assert "::error" in shown.err
    json.loads(shown.out)
    assert "FAIL" in (tmp_path / "summary.md").read_text(encoding="utf-8").upper()


def test_compare_reads_reports_and_writes_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kl in (("a", 0.001), ("b", 0.02)):
        (tmp_path / name).mkdir()
        write_reports(tmp_path / name / "drift.json", [report(name=f"{name}.gguf", kl=kl)])
    page = tmp_path / "page.html"
    paths = [str(tmp_path / "a"), str(tmp_path / "b" / "drift.json")]
    assert run(["drift", "compare", *paths, "--report", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "a.gguf" in shown
    assert "2.0e-02 [1.6e-02, 2.4e-02]" in shown
    assert "b.gguf" in page.read_text(encoding="utf-8")


def test_compare_refuses_what_was_measured_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    write_reports(first, [report()])
    other = report()
    write_reports(
        second, [dataclasses.replace(other, data=dataclasses.replace(other.data, sha256="ee" * 32))]
    )
    assert run(["drift", "compare", str(first), str(second)]) == 1
    assert "problems" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "is no drift report"),
        ('{"artifacts": [{"schema_version": 1}]}', "schema version 1"),
        ('{"artifacts": [{"schema_version": 3, "tokens": 3}]}', "is damaged"),
        ('{"artifacts": [3]}', "is damaged"),
        ('{"artifacts": []}', "lists no artifacts"),
        ("5", "is no drift report"),
    ],
)
def test_compare_refuses_damaged_reports(
    text: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "drift.json").write_text(text)
    assert run(["drift", "compare", str(tmp_path)]) == 1
    assert part in capsys.readouterr().err
    assert run(["drift", "compare", str(tmp_path / "nowhere")]) == 1


def test_help_of_the_two_word_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("drift", "drift baseline", "drift compare"):
        assert run([*command.split(), "--help"]) == 0
        shown = capsys.readouterr().out
        assert f"Usage: tightfit {command} [OPTIONS]" in shown
        assert "EXAMPLES" in shown
