"""The composite action and the workflows: what they declare, and what their scripts really do.

The scripts of `action.yml` run here as GitHub's runner runs them, with a stand-in for `tightfit`
that writes down its arguments and ends with a status of the test's choice.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCUMENT = ROOT / "docs" / "ci.md"
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
TAG = re.compile(r"[\w.-]+/[\w./-]+@v\d+$")

STAND_IN = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
Path(os.environ["SEEN"]).write_text(json.dumps(sys.argv[1:]))
if text := os.environ.get("WRITES_BASELINE"):
    (option,) = (arg for arg in sys.argv if arg.startswith("--baseline-cache="))
    Path(option.partition("=")[2]).write_text(text)
sys.exit(int(os.environ.get("STATUS", "0")))
"""


def documented():
    """The YAML blocks of docs/ci.md."""
    return [
        yaml.safe_load(block)
        for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    ]


def steps_of(document):
    """All steps of a workflow, or of a bare list of steps."""
    if isinstance(document, list):
        return document
    return [step for job in document.get("jobs", {}).values() for step in job["steps"]]


def uses_of_the_action():
    """(where, step, all steps beside it) of each use of this repository's action."""
    documents = [(path.name, yaml.safe_load(path.read_text())) for path in WORKFLOWS]
    documents += [("docs/ci.md", block) for block in documented()]
    for where, document in documents:
        steps = steps_of(document)
        for step in steps:
            if re.match(r"\./$|OWNER/tightfit@", step.get("uses", "")):
                yield where, step, steps


def every_step():
    yield from (("action.yml", step) for step in ACTION["runs"]["steps"])
    for path in WORKFLOWS:
        yield from ((path.name, step) for step in steps_of(yaml.safe_load(path.read_text())))
    for block in documented():
        yield from (("docs/ci.md", step) for step in steps_of(block))


def test_scripts_hold_no_expressions() -> None:
    """A value that is pasted into a script is run by it; through the environment it is not."""
    scripts = [(where, step["run"]) for where, step in every_step() if "run" in step]
    assert len(scripts) >= 6
    for where, script in scripts:
        assert "${{" not in script, where


def test_declared_and_used_inputs_are_the_same() -> None:
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text(encoding="utf-8")))
    assert used == ACTION["inputs"].keys()
    for name, entry in ACTION["inputs"].items():
        assert entry["description"], name
        assert ("default" in entry) is not entry.get("required", False), name


def test_outputs_come_from_steps_that_exist() -> None:
    identified = {step["id"] for step in ACTION["runs"]["steps"] if "id" in step}
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"steps\.([\w-]+)\.", text)) <= identified
    for step in ACTION["runs"]["steps"]:
        assert ("run" in step) == ("shell" in step), step["name"]


def test_foreign_actions_are_pinned_to_a_major_version() -> None:
    for where, step in every_step():
        uses = step.get("uses")
        assert uses in (None, "./") or TAG.match(uses) or uses.startswith("OWNER/tightfit@"), where


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_only_read(path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    # YAML 1.1 reads the key `on` as true.
    assert {"push", "pull_request"} <= workflow[True].keys()
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]


def test_the_action_is_used_as_declared() -> None:
    uses = list(uses_of_the_action())
    assert {where for where, _, _ in uses} == {"drift.yml", "docs/ci.md"}
    required = {name for name, entry in ACTION["inputs"].items() if entry.get("required")}
    for where, step, beside in uses:
        assert required <= step["with"].keys() <= ACTION["inputs"].keys(), where
        if "id" in step:
            read = re.findall(rf"steps\.{step['id']}\.outputs\.([\w-]+)", yaml.dump(beside))
            assert read
            assert set(read) <= ACTION["outputs"].keys(), where


def test_the_document_lists_every_input_and_output() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert listed == ACTION["inputs"].keys() | ACTION["outputs"].keys()


def test_the_sample_sizes_of_the_document() -> None:
    from tightfit.drift.statistics.needed import needed_problems
    from tightfit.drift.statistics.paired import compare_paired

    def needed(limit, n, flipped):
        right, lost, won = [1.0] * (n - 2), [1.0, 0.0], [0.0, 1.0]
        scores = (right + lost, right + won) if flipped else (right, right)
        return needed_problems(compare_paired(*scores, samples=1), limit)

    rows = re.findall(
        r"^\| (\d) points? \|([ \d|]+)\|$", DOCUMENT.read_text(encoding="utf-8"), re.M
    )
    assert len(rows) == 4
    for points, figures in rows:
        limit, listed = float(points), [int(figure) for figure in figures.split("|")]
        # One lost and one won of 100, 50 and 20 problems: 2, 4 and 10 % flip.
        flipped = [needed(limit, n, flipped=True) for n in (100, 50, 20)]
        assert listed == [needed(limit, 4, flipped=False), *flipped]


def test_the_command_line_knows_every_option() -> None:
    import typer

    from tightfit.cli.main import app

    command = typer.main.get_command(app).commands["drift"]
    known = {option for parameter in command.params for option in parameter.opts}
    script = STEPS["Measure drift"]["run"]
    passed = {f"--{name}" for name in re.findall(r"^ *option ([\w-]+) ", script, re.M)}
    passed |= set(re.findall(r"[\"(](--[\w-]+)", script))
    assert {"--baseline", "--junit", "--sequential", "--max-kl"} <= passed
    assert passed <= known


@dataclass
class Runner:
    """What GitHub's runner does for a step of a composite action."""

    folder: Path
    status: int = 0
    writes_baseline: str = ""
    steps: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.temp = self.folder / "temp"
        self.work = self.folder / "work"
        self.bin = self.folder / "bin"
        for folder in (self.temp, self.work, self.bin):
            folder.mkdir()
        stand_in = self.bin / "tightfit"
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)
        (self.bin / "python").symlink_to(sys.executable)
        self.steps["install"] = {"bin": str(self.bin)}
        self.steps["python"] = {"python-path": str(self.bin / "python")}

    def run(self, name, **given):
        """Run a step's script; returns its exit status."""
        step = STEPS[name]
        inputs = {key: entry.get("default", "") for key, entry in ACTION["inputs"].items()}
        inputs |= {"baseline": "tiny-r1"}
        inputs |= {key.replace("_", "-"): value for key, value in given.items()}
        values = {f"inputs.{key}": value for key, value in inputs.items()}
        values |= {"github.action_path": str(ROOT)}
        for step_id, outputs in self.steps.items():
            values |= {f"steps.{step_id}.outputs.{key}": text for key, text in outputs.items()}
        output = self.folder / "output"
        output.write_text("")
        environment = {
            **{
                key: EXPRESSION.sub(lambda match: values[match[1]], text)
                for key, text in step["env"].items()
            },
            "PATH": os.environ["PATH"],
            "GITHUB_OUTPUT": str(output),
            "RUNNER_TEMP": str(self.temp),
            "RUNNER_OS": "Linux",
            "SEEN": str(self.folder / "seen.json"),
            "STATUS": str(self.status),
            "WRITES_BASELINE": self.writes_baseline,
        }
        script = self.folder / "script.sh"
        script.write_text(step["run"], encoding="utf-8")
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.work,
            env=environment,
            capture_output=True,
            text=True,
        )
        self.log = done.stdout + done.stderr
        lines = [line.partition("=") for line in output.read_text().splitlines()]
        self.steps[step["id"]] = {key: text for key, _, text in lines}
        return done.returncode

    def measure(self, **given):
        """The two steps around `tightfit drift`; returns the status and its arguments."""
        assert self.run("Find the baseline", **given) == 0, self.log
        status = self.run("Measure drift", **given)
        seen = self.folder / "seen.json"
        return status, json.loads(seen.read_text()) if seen.exists() else None

    @property
    def outputs(self):
        return self.steps["drift"]


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path)


def test_the_simplest_use_passes_only_what_was_given(runner) -> None:
    status, seen = runner.measure(artifact="out")
    place = runner.steps["baseline"]["file"]
    assert status == 0
    assert seen == [
        "drift",
        "--baseline=tiny-r1",
        f"--baseline-cache={place}",
        "--junit=drift-report/junit.xml",
        "--report=drift-report",
        "--",
        "out",
    ]
    assert Path(place).parent == runner.temp


def test_every_input_arrives_as_it_was_written(runner) -> None:
    hostile = "$(touch stolen) `touch stolen`; touch stolen # \"'\\ *"
    status, seen = runner.measure(
        artifact="-rf " + hostile,
        baseline=hostile,
        revision="main",
        subset="math500:n=8,subject=Number Theory",
        dataset="a/b",
        protocol="deepseek",
        samples="4",
        max_drop="2.5",
        max_kl="0.1",
        sequential="true",
        format="gguf,onnx",
        extra_args="--seed=3\n\n--model=a b $(touch stolen)\n",
        report="my report",
        baseline_cache="my cache.zip",
    )
    assert status == 0, runner.log
    assert seen == [
        "drift",
        f"--baseline={hostile}",
        "--baseline-cache=my cache.zip",
        "--junit=my report/junit.xml",
        "--report=my report",
        "--revision=main",
        "--subset=math500:n=8,subject=Number Theory",
        "--dataset=a/b",
        "--protocol=deepseek",
        "--samples=4",
        "--max-drop=2.5",
        "--max-kl=0.1",
        "--format=gguf,onnx",
        "--sequential",
        "--seed=3",
        "--model=a b $(touch stolen)",
        "--",
        "-rf " + hostile,
    ]
    assert not (runner.work / "stolen").exists()


def test_an_endpoint_needs_no_artifact(runner) -> None:
    _, seen = runner.measure(extra_args="--endpoint=http://localhost:8000/v1")
    assert seen[-1] == "--endpoint=http://localhost:8000/v1"
    assert "--" not in seen


@pytest.mark.parametrize(
    ("status", "allowed", "ends_with", "verdict"),
    [
        (0, "false", 0, "pass"),
        (3, "false", 3, "fail"),
        (3, "true", 3, "fail"),
        (5, "false", 5, "inconclusive"),
        (5, "true", 0, "inconclusive"),
        (1, "true", 1, "error"),
        (2, "true", 2, "error"),
        (4, "false", 4, "error"),
    ],
)
def test_the_exit_status_passes_through(runner, status, allowed, ends_with, verdict) -> None:
    runner.status = status
    assert runner.measure(artifact="out", allow_inconclusive=allowed)[0] == ends_with
    assert runner.outputs["verdict"] == verdict
    assert runner.outputs["exit-status"] == str(status)


@pytest.mark.parametrize("name", ["sequential", "allow_inconclusive"])
def test_a_switch_that_is_neither_true_nor_false_is_refused(runner, name) -> None:
    status, seen = runner.measure(artifact="out", **{name: "yes"})
    assert (status, seen) == (2, None)
    assert f"::error title=tightfit drift::the input {name.replace('_', '-')}" in runner.log


def test_a_new_or_grown_baseline_is_kept_and_an_unchanged_one_is_not(runner) -> None:
    runner.status, runner.writes_baseline = 3, "answers"
    assert runner.measure(artifact="out")[0] == 3
    first = runner.outputs["keep-as"]
    assert first.startswith(runner.steps["baseline"]["key"] + "-")
    assert re.fullmatch(r"tightfit-baseline-[0-9a-f]{64}-\d+-7", first)

    runner.run("Measure drift", artifact="out")
    assert "keep-as" not in runner.outputs
    runner.writes_baseline = "answers and more"
    runner.run("Measure drift", artifact="out")
    assert runner.outputs["keep-as"] not in ("", first)


def test_a_baseline_file_that_exists_is_not_restored_over(runner) -> None:
    runner.run("Find the baseline", baseline_cache="base.zip")
    assert runner.steps["baseline"]["restore"] == "true"
    (runner.work / "base.zip").write_text("kept")
    runner.run("Find the baseline", baseline_cache="base.zip")
    assert runner.steps["baseline"]["restore"] == "false"
    assert runner.steps["baseline"]["file"] == "base.zip"


def test_the_key_follows_what_decides_the_baseline_and_nothing_else(runner) -> None:
    def key(**given):
        assert runner.run("Find the baseline", **given) == 0, runner.log
        return runner.steps["baseline"]["key"]

    model, data = runner.work / "model", runner.work / "data.jsonl"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"one")
    data.write_text("{}\n")
    plain = key()
    assert plain == key(max_drop="1", max_kl="1", artifact="x", format="gguf", report="r")
    changed = [
        key(baseline="model"),
        key(revision="main"),
        key(subset="data.jsonl:n=2"),
        key(dataset="data.jsonl"),
        key(protocol="greedy"),
        key(samples="2"),
        key(extra_args="--seed=1"),
    ]
    (model / "model.safetensors").write_bytes(b"two")
    data.write_text("{}\n{}\n")
    changed += [
        key(baseline="model"),
        key(subset="data.jsonl:n=2"),
        key(dataset="data.jsonl"),
    ]
    assert len({plain, *changed}) == 1 + len(changed)


def test_torch_is_installed_first_and_by_its_pin(runner) -> None:
    log = runner.folder / "pip.log"
    pip = runner.folder / "python"
    # As `-m venv` it makes the environment with itself as Python; as pip it writes down.
    pip.write_text(
        '#!/bin/sh\nif [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; '
        f'else printf "%s|" "$@" >> "{log}"; echo >> "{log}"; fi\n'
    )
    pip.chmod(0o755)
    runner.steps["python"] = {"python-path": str(pip)}
    assert runner.run("Install tightfit") == 0, runner.log
    first, second = log.read_text().splitlines()
    assert re.search(r"\|-c\|.*constraints\.txt\|torch==[\d.]+\|$", first)
    assert second.endswith(f"constraints.txt|{ROOT}[llamacpp,onnx,drift]|")
    assert runner.steps["install"]["bin"] == str(runner.temp / "tightfit" / "bin")
