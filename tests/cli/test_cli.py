"""The command line as a user meets it: help, data, errors, exit statuses."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import typer

from tightfit.calib.models import MODELS
from tightfit.cli import main as cli
from tightfit.cli.failures import describe_failure
from tightfit.cli.main import app, join_command, run
from tightfit.errors import DoesNotFitError
from tightfit.targets.profile import list_targets

COMMANDS = typer.main.get_command(app).commands
EXPECTED = {
    "models",
    "targets",
    "plan",
    "export",
    "verify",
    "drift",
    "drift baseline",
    "drift compare",
    "build-engine",
    "inspect",
    "publish",
    "doctor",
}
PLAN = ["plan", "r1-distill-qwen-7b", "--target", "rtx3060-8gb"]


def examples() -> list[list[str]]:
    texts = [COMMANDS[name].epilog for name in COMMANDS] + [typer.main.get_command(app).epilog]
    return [shlex.split(line) for text in texts for line in re.findall(r"\$ tightfit (.*)", text)]


def test_all_commands_are_there() -> None:
    assert set(COMMANDS) == EXPECTED


@pytest.mark.parametrize("command", ["", *sorted(EXPECTED)])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command.split(), "--help"]) == 0
    shown = capsys.readouterr()
    assert "EXAMPLES\n" in shown.out
    assert f"$ tightfit {command}" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("args", examples(), ids=" ".join)
def test_every_example_parses(args: list[str]) -> None:
    """Option names and types of the examples are those of the commands."""
    name, *options = join_command(args)
    COMMANDS[name].make_context(name, options)


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "EXIT STATUS" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"tightfit \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["export", "--help"],
        ["models"],
        ["targets"],
        ["targets", "rtx3060-8gb"],
        PLAN,
        [*PLAN, "--json"],
        [*PLAN, "--scheme", "q4_k_m"],
        ["plan", "tiny-r1", "--target", "cpu-16gb"],
    ],
    ids=" ".join,
)
def test_planning_commands_import_nothing_that_takes_long(args: list[str]) -> None:
    heavy = "torch transformers scipy numba gguf huggingface_hub onnx"
    code = (
        "import sys; from tightfit.cli.main import run; status = run(sys.argv[2:]); "
        "heavy = set(sys.argv[1].split()) & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, heavy, *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_models_lists_the_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in listed] == [
        "tiny-r1",
        *(model.name for model in MODELS.values()),
    ]
    assert listed[1]["dimensions"]["n_layers"] == 61
    assert run(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(model.id in shown for model in MODELS.values())


def test_targets_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["targets"]
    assert [target["name"] for target in listed] == list(list_targets())
    assert run(["targets", "rtx4090-24gb"]) == 0
    assert "VGen #104" in capsys.readouterr().out


def test_plan_shows_the_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(PLAN) == 0
    shown = capsys.readouterr()
    assert "> auto" in shown.out
    assert shown.out.count("> ") == 1
    assert "auto puts each tensor on the grid that loses least" in shown.out
    for column in ("max context", "KL, predicted", "tokens/s, bound", "fits"):
        assert all(word in shown.out for word in column.split())
    assert shown.err == ""
    assert run([*PLAN, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["chosen"]["scheme"] == "auto"
    assert document["target"] == "rtx3060-8gb"
    assert document["workload"] == {
        "context_tokens": 8192,
        "n_sequences": 1,
        "cache_type": "f16",
        "split": "layer",
    }
    for item in document["candidates"]:
        parts = ("weights_bytes", "kv_cache_bytes", "compute_bytes", "runtime_bytes")
        assert item["total_bytes"] == sum(item[part] for part in parts)
        (device,) = item["memory"]["devices"]
        assert {part: item[part] for part in parts} == device
        assert item["fits"] == (item["total_bytes"] <= document["available_bytes"])
    auto = next(item for item in document["candidates"] if item["scheme"] == "auto")
    assert auto == document["chosen"]
    assert 0.99 * document["budget_bytes"] <= auto["weights_bytes"] <= document["budget_bytes"]


def test_plan_of_several_devices_says_how_they_share(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "r1-distill-llama-70b", "-t", "rtx3090x2", "--scheme", "q4_k_m"]
    assert run(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 devices, split by layer: the fullest holds" in shown
    assert "of its 23.15 GiB" in shown
    assert run([*command, "--split", "tensor", "--batch", "2", "--kv-cache", "q8_0"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 devices, split by tensor" in shown
    assert "8192 tokens of context for each of 2 sequences" in shown


def test_plan_shows_the_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--all-targets", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| target | qwen-1.5b | qwen-7b | llama-8b |")
    assert lines[0].endswith("| r1, r1-zero, r1-0528 |")
    assert lines[1] == "|---" * 9 + "|"
    assert len(lines) == 2 + len(list_targets())
    cells = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ") for row in lines[2:]}
    assert cells["rtx3060-8gb"][5:] == ["-"] * 4
    assert cells["a100x8-80gb"][1] == "Q8_0, 128k"
    assert run(["plan", "--all-targets", "--context", "131072", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["context_tokens"] == 131072
    assert len(document["cells"]) == 8 * len(list_targets())
    found = {(cell["model"], cell["target"]): cell for cell in document["cells"]}
    assert found["r1-distill-qwen-1.5b", "rtx3060-8gb"]["max_context_tokens"] == 131072
    assert found["r1-distill-llama-8b", "rtx3060-8gb"]["scheme"] is None


@pytest.mark.parametrize("model", ["deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "r1-distill-qwen-7b"])
def test_plan_takes_hub_ids_and_short_names(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", model, "-t", "rtx3060-8gb", "--scheme", "q4_k_m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"]["file_bytes"] == 4_677_120_000


def test_plan_reads_a_local_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = next(model for model in MODELS.values() if model.name == "r1-distill-qwen-7b")
    sizes = known.dimensions
    config = {
        "model_type": "qwen2",
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.n_layers,
        "num_attention_heads": sizes.n_heads,
        "num_key_value_heads": sizes.n_kv_heads,
        "intermediate_size": sizes.intermediate_size,
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": sizes.max_position_embeddings,
        "rms_norm_eps": sizes.rms_norm_eps,
        "rope_theta": sizes.rope_theta,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run(["plan", str(tmp_path), "-t", "rtx3060-8gb", "--json"]) == 0
    local = json.loads(capsys.readouterr().out)
    assert run([*PLAN, "--json"]) == 0
    assert local["candidates"] == json.loads(capsys.readouterr().out)["candidates"]


def test_plan_of_an_unknown_hub_id_downloads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "someone/else", "-t", "cpu-16gb"]) == 1
    assert "hf download someone/else config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["plan", "r1", "-t", "a100-80gb"], 4, "--target a100x4-80gb or "),
        (["plan", "r1", "-t", "a100x8-80gb", "--format", "onnx"], 2, "keeps a graph on one device"),
        (["plan", "r1-distill-llama-70b", "-t", "rtx4090-24gb"], 4, "what would fit"),
        (["plan", "tiny-r1", "-t", "rtx9999"], 2, "targets: a100-40gb"),
        (["plan", "tiny-r1"], 2, "--target"),
        (["plan", "tiny-r1", "-t", "cpu-16gb", "--scheme", "q9"], 2, "file types: "),
        (["plan", "tiny-r1", "-t", "cpu-16gb", "--context", "99999"], 2, "1 to 1024 tokens"),
        (["plan", "tiny-r1", "-t", "cpu-16gb", "--context", "many"], 2, "--context"),
        ([*PLAN, "--scheme", "nvfp4"], 2, "fp4 needs 10.0"),
        ([*PLAN[:3], "rtx5090-32gb", "--scheme", "nvfp4"], 2, "tightfit writes no FP4 grid"),
        ([*PLAN, "--budget-gib", "0.5"], 2, "--bpw"),
        ([*PLAN, "--budget-gib", "nan"], 2, "--budget-gib nan is not a size"),
        ([*PLAN, "--bpw", "0"], 2, "a number above 0"),
        ([*PLAN, "--bpw", "4", "--budget-gib", "4"], 2, "one of the two"),
        ([*PLAN, "--bpw", "4", "--scheme", "q4_k_m"], 2, "is for --scheme auto"),
        ([*PLAN, "--batch", "0"], 2, "--batch"),
        ([*PLAN, "--kv-cache", "q4_0"], 2, "allowed: f16, q8_0, fp8"),
        ([*PLAN, "--kv-cache", "fp8"], 2, "--kv-cache f16 or q8_0"),
        ([*PLAN, "--split", "rows"], 2, "allowed: layer, tensor"),
        ([*PLAN, "--markdown"], 2, "--markdown is for --all-targets"),
        (["plan", "r1", "--all-targets"], 2, "leave r1 out"),
        (["plan", "--all-targets", "--batch", "2", "--scheme", "q6_k"], 2, "--batch, --scheme out"),
        (["plan", "--all-targets", "--context", "0"], 2, "1 to 163840 tokens"),
        (["plan", "-t", "cpu-16gb"], 2, "no MODEL was given"),
        (["plan", "no-such-model", "-t", "cpu-16gb"], 1, "tightfit models"),
        (["export", "-t", "cpu-16gb", "--format", "exl2"], 2, "gguf, onnx, tensorrt"),
        (["export", "-t", "cpu-16gb", "--format", "gguf,,onnx"], 2, "gguf, onnx, tensorrt"),
        (["export", "-t", "cpu-16gb", "--format", "tensorrt"], 2, "targets for TensorRT: a100"),
        (["export", "-t", "cpu-16gb", "--format", "onnx", "--scheme", "q4_k_m"], 2, "gptq-int4"),
        (["export", "-t", "cpu-16gb", "--onnx-dialect", "onnx"], 2, "allowed: ort, standard"),
        (["export", "-t", "cpu-16gb", "--onnx-precision", "int8"], 2, "auto, float32, float16"),
        (["export", "-t", "cpu-16gb", "--onnx-layout", "js"], 2, "allowed: genai, transformers-js"),
        (["export", "-t", "rtx3060-8gb", "--also-for", "8.9"], 2, "add tensorrt to --format"),
        (
            ["export", "-t", "rtx3060-8gb", "--format", "tensorrt", "--scheme", "fp8"],
            2,
            "int4-g128",
        ),
        (["build-engine", "no-such-folder"], 1, "tightfit.json"),
        (["build-engine", "out", "--package", "trt"], 2, "allowed: tensorrt_rtx, tensorrt"),
        (["export", "-t", "cpu-16gb", "--method", "magic"], 2, "awq-gptq"),
        (["export", "-t", "cpu-16gb", "--split-max-size", "4 parsecs"], 2, "--split-max-size 4G"),
        (["export", "-t", "cpu-16gb", "--calib-samples", "0"], 2, "--calib-samples"),
        (["export", "-t", "cpu-16gb", "--frobnicate"], 2, "--frobnicate"),
        (["verify", "no-such-folder"], 1, "tightfit.json"),
        (["drift", "no-such-folder", "--baseline", "tiny-r1"], 1, "no-such-folder"),
        (["drift", "out"], 2, "--baseline"),
        (["inspect", "no-such-file"], 1, "no such file"),
        (["publish"], 2, "publish"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors_say_what_to_do(
    args: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") or "\nerror: " in shown.err
    assert said in shown.err
    assert "Traceback" not in shown.err

    assert run([*args, "--json"]) == status
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"error"}
    assert document["error"]["exit_status"] == status


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--debug", "r1", "-t", "a100-80gb"]) == 4
    assert "Traceback" in capsys.readouterr().err


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("tightfit.targets.profile.list_targets", failing)


def test_defect_is_reported_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(ZeroDivisionError("by zero"), monkeypatch)
    assert run(["targets"]) == 1
    shown = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: by zero" in shown
    assert "--debug" in shown


def test_interrupt_says_how_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert run(["targets"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


def test_sigint_ends_the_process_with_130() -> None:
    """A real signal during a real wait."""
    code = (
        "import time, tightfit.targets.profile as p, sys; "
        "p.list_targets = lambda: (sys.stderr.write('ready\\n'), sys.stderr.flush(), "
        "time.sleep(30)); from tightfit.cli.main import main; main(['targets'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "resume" in said


def test_full_disk_names_the_way_out() -> None:
    failure = describe_failure(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/x.gguf"))
    assert failure.exit_status == 1
    assert "out/x.gguf" in failure.problem
    assert "resume" in failure.hint


def test_errors_keep_their_three_parts() -> None:
    failure = describe_failure(DoesNotFitError("too big", allowed="8 GiB", hint="smaller"))
    assert (failure.problem, failure.allowed, failure.hint) == ("too big", "8 GiB", "smaller")
    assert failure.exit_status == 4
    assert failure.lines == ["error: too big", "       8 GiB", "hint:  smaller"]


def test_closed_pipe_is_quiet() -> None:
    code = "from tightfit.cli.main import main; main(['models'])"
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | true",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""


def test_doctor_hides_the_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    assert run(["doctor", "--json"]) == 0
    shown = capsys.readouterr().out
    assert "secret" not in shown
    checks = {check["name"]: check for check in json.loads(shown)["checks"]}
    assert checks["Hub token"]["found"] == "present"
    assert checks["llama.cpp (xllamacpp)"]["ok"]


def test_doctor_names_the_runtimes(capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    assert run(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    found = checks["onnxruntime"]
    assert found["ok"]
    assert found["found"].startswith(f"{onnxruntime.__version__} with ")
    assert found["found"].endswith("CPU")
    assert checks["TensorRT for RTX"]["ok"] == (util.find_spec("tensorrt_rtx") is not None)


def test_doctor_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tightfit.cli.doctor._version", lambda _package: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    for name, extra in {
        "llama.cpp (xllamacpp)": "llamacpp",
        "onnxruntime": "onnx",
        "TensorRT for RTX": "tensorrt",
        "math-verify": "drift",
        "drift report": "drift",
    }.items():
        assert not checks[name]["ok"]
        assert f"pip install 'tightfit[{extra}]'" in checks[name]["advice"]


def test_inspect_safetensors(capsys: pytest.CaptureFixture[str]) -> None:
    embedded = Path(cli.__file__).parents[2] / "calib" / "embedded" / "tiny-r1"
    assert run(["inspect", str(embedded / "model.safetensors"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = {tensor["name"] for tensor in document["tensors"]}
    assert "model.embed_tokens.weight" in names
    assert run(["inspect", str(embedded / "config.json")]) == 1
    assert "does not know this kind of file" in capsys.readouterr().err


def test_inspect_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gguf
    import numpy as np

    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_chat_template("x" * 500)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert run(["inspect", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["metadata"]["general.architecture"] == "qwen2"
    assert document["tensors"][0]["shape"] == [4, 32]
    assert run(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "4 x 32" in shown
    assert "x" * 500 not in shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_a_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tightfit", "targets", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: No space left on device")
    assert "Traceback" not in done.stderr
