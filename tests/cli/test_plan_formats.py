"""`tightfit plan` for formats other than GGUF."""

import json

import pytest

from tightfit.cli.main import run
from tightfit.targets.formats import CHECKPOINT_FORMATS, FORMATS

PLAN = ["plan", "r1-distill-qwen-1.5b", "-t", "rtx4090-24gb"]


@pytest.mark.parametrize("name", FORMATS)
def test_document_of_a_format(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*PLAN, "--format", name, "--scheme", "gptq-int4-g128", "--head", "f16", "--json"]
    assert run(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == name
    assert document["runtime"] == FORMATS[name].runtime
    assert document["precision"] == ("float16" if name in ("onnx", "tensorrt") else None)
    assert document["chosen"]["scheme"] == "gptq-int4-g128"
    assert document["storage"]["lm_head.weight"] == "F16"
    assert document["storage"]["model.layers.0.mlp.up_proj.weight"] == "int4-g128-sym"
    assert document["chosen"]["fits"]
    schemes = [item["scheme"] for item in document["candidates"]]
    assert ("f16" in schemes) == (name not in CHECKPOINT_FORMATS)


def test_table_of_a_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*PLAN, "--format", "tensorrt", "--embedding", "int8-channel"]) == 0
    shown = capsys.readouterr().out
    assert "rtx4090-24gb in tensorrt-rtx" in shown
    assert "> auto" in shown
    assert "int4-g128" in shown
    assert "fp8-channel" in shown


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--format", "exl2"], 2, "formats: gguf, onnx, tensorrt"),
        (["--format", "onnx", "--scheme", "q4_k_m"], 2, "gptq-int4-g128"),
        (["--format", "onnx", "--scheme", "f32"], 2, "float16 graph"),
        (["--format", "tensorrt", "--head", "int3-g64"], 2, "TensorRT cannot hold"),
        (["--format", "tensorrt", "--target", "cpu-16gb"], 2, "NVIDIA's GPUs only"),
    ],
)
def test_refusals(
    options: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*PLAN, *options]) == status
    assert message in capsys.readouterr().err


def test_a_budget_sets_what_auto_spends(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*PLAN, "--format", "onnx", "--bpw", "5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["chosen"]["scheme"] == "auto"
    assert 4.95 <= document["chosen"]["bits_per_weight"] <= 5
    assert run([*PLAN, "--budget-gib", "1.25", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["budget_bytes"] == 1.25 * 2**30
    assert 0.99 <= document["chosen"]["file_bytes"] / document["budget_bytes"] <= 1
