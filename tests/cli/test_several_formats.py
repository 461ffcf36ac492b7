"""A folder of several formats, as its user sees it."""

import json
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint

from tightfit.cli.main import run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_checkpoint(folder / "model", "qwen2")
    command = ["export", str(folder / "model"), "-t", "cpu-16gb", "-o", str(folder / "out")]
    command += ["--format", "gguf,onnx", "--scheme", "gptq-int4-g128", "--head", "f16"]
    assert run([*command, "--calib-samples", "4", "--calib-length", "64"]) == 0
    return folder


def test_export_shows_a_row_for_each_format(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(made / "model"), "-t", "cpu-16gb", "-o", str(tmp_path / "out")]
    command += ["--format", "gguf,onnx", "--scheme", "int4-g128", "--method", "rtn"]
    command += ["--calib-samples", "4", "--calib-length", "64"]

    assert run([*command, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "in llama.cpp" in shown.out
    assert "in onnxruntime" in shown.out
    assert "dry run" in shown.out
    assert not (tmp_path / "out").exists()

    assert run(command) == 0
    shown = capsys.readouterr()
    rows = [line.split()[:2] for line in shown.out.splitlines() if "GiB" in line or "MiB" in line]
    assert ["gguf", "int4-g128"] in rows
    assert ["onnx", "int4-g128"] in rows
    assert "q4_k_m" not in shown.out
    assert "KiB" in shown.out
    assert "0.0 MiB" not in shown.out
    assert "gguf, onnx hold the same numbers: weights " in shown.out
    assert "Writing onnx/model.onnx" in shown.err


def test_verify_shows_a_table_for_each_format(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(made / "out")]) == 0
    shown = capsys.readouterr().out
    assert "llama.cpp" in shown
    assert "onnxruntime" in shown
    assert shown.endswith("passed\n")
    assert "--on-gpu" not in shown  # there is no engine


def test_inspect_shows_each_format_in_short(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(made / "out")]) == 0
    shown = capsys.readouterr().out
    assert "14 Q4_0" in shown
    assert "14 int4-g128-sym" in shown
    assert "genai_config.json" in shown
    assert "model.layers.0" not in shown
    assert run(["inspect", str(made / "out"), "--json"]) == 0
    artifacts = json.loads(capsys.readouterr().out)["artifacts"]
    assert [made["format"] for made in artifacts] == ["gguf", "onnx"]
    assert len({made["weights_sha256"] for made in artifacts}) == 1


def test_inspect_onnx(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made / "out" / "onnx" / "model.onnx"
    assert run(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "14 MatMulNBits" in shown
    assert "past_key_values.0.key" in shown

    assert run(["inspect", str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "onnx"
    assert document["opsets"]["com.microsoft"] == 1
    tensors = {tensor["name"]: tensor for tensor in document["tensors"]}
    codes = tensors["model.layers.1.mlp.up_proj.weight.codes"]
    assert (codes["dtype"], codes["shape"]) == ("UINT8", [512, 2, 64])


def test_inspect_a_damaged_onnx(made: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "model.onnx"
    path.write_bytes((made / "out" / "onnx" / "model.onnx").read_bytes()[:1000])
    assert run(["inspect", str(path)]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err
