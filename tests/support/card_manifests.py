"""Manifests of everything that can be published, made by hand, each number in them another one."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import drift_reports
from support.tiny_r1 import TINY_R1
from tightfit.drift.report import DriftReport, to_fields, without_examples
from tightfit.export.manifest import (
    SCHEMA_VERSION,
    Artifact,
    CalibrationRecord,
    EngineRecord,
    FileRecord,
    GraphRecord,
    InputRecord,
    Manifest,
    Parity,
    SchemeRecord,
    TensorRecord,
    Verification,
    hash_file,
)

REPO = "someone/r1-small-for-me"
QWEN = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
REVISION = "916b56a44061fd5cd7d6a8fb632557ed4f724f60"
COMPANIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
GRIDS = {
    "gguf": "Q4_K",
    "onnx": "int4-g128-sym",
    "tensorrt": "int4-g128-sym",
    "gptq": "int4-g128-asym",
    "awq": "int4-g64-asym",
    "compressed-tensors": "fp8-e4m3-channel",
    "modelopt": "fp8-e4m3-tensor",
}
FILES = {
    "gguf": ("DeepSeek-R1-Distill-Qwen-7B-auto-Q4_K_M.gguf",),
    "split": tuple(f"DeepSeek-R1-Q2_K-0000{part}-of-00003.gguf" for part in (1, 2, 3)),
    "onnx": ("onnx/model.onnx", "onnx/model.onnx.data", "genai_config.json"),
    "js": ("onnx/model_q4f16.onnx", "onnx/model_q4f16.onnx_data"),
    "tensorrt": (
        "tensorrt/model.onnx",
        "tensorrt/model.onnx.data",
        "tensorrt/golden.safetensors",
        "tensorrt/model.sm86.engine",
        "tensorrt/model.sm86.build.log",
    ),
    "gptq": ("model.safetensors", "quantize_config.json"),
    "awq": ("model.safetensors",),
    "compressed-tensors": (
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ),
    "modelopt": ("model.safetensors", "hf_quant_config.json"),
}
CHECKPOINTS = ("gptq", "awq", "compressed-tensors", "modelopt")


def artifact(kind: str, *, inside: bool = False, report: DriftReport | None = None) -> Artifact:
    """The artifact of a format, or of `split` and `js`, variants of GGUF and ONNX."""
    format_ = {"split": "gguf", "js": "onnx"}.get(kind, kind)
    names = FILES[kind]
    if inside:
        names = tuple(f"{kind}/{name}" for name in (*names, *COMPANIONS))
    number = list(FILES).index(kind)
    files = tuple(
        FileRecord(
            name=name,
            size_bytes=1_234_567_891 * (at + 1) + 7_654_321 * number,
            sha256=f"{at}f" * 32,
        )
        for at, name in enumerate(names)
    )
    return Artifact(
        format=format_,
        scheme=SchemeRecord(
            name="auto",
            method="awq-gptq",
            order="static",
            reason="auto puts each tensor on the grid that loses least in the bytes there are: "
            f"{4 + number / 7:.2f} bits per weight, 3.9 GiB of --bpw 4.37 (3.9 GiB). With that it "
            "takes 6.83 GiB of the 7.25 GiB that rtx3060-8gb has for a model, at 8192 tokens of "
            "context.",
            budget_bytes=4_187_593_113,
        ),
        files=files,
        bits_per_weight=4 + number / 7,
        weights_sha256=f"{number}a" * 32,
        tensors=(
            TensorRecord(
                name="blk.0.attn_q.weight",
                grid=GRIDS[format_],
                shape=(3584, 3584),
                sha256="0b" * 32,
                relative_error=0.01234,
            ),
            TensorRecord(
                name="norm", grid="float16", shape=(3584,), sha256="0c" * 32, relative_error=None
            ),
        ),
        graph=GraphRecord(dialect="ort", precision="float16") if format_ == "onnx" else None,
        engines=(engine(),) if format_ == "tensorrt" else (),
        verification=verification(),
        drift=None if report is None else drift_of(report, format_, files[0], f"{number}a" * 32),
    )


def engine() -> EngineRecord:
    """One that has never run."""
    return EngineRecord(
        file="tensorrt/model.sm86.engine",
        compute_capabilities=("8.6",),
        experimental=False,
        builder="tensorrt_rtx 1.7.1.116",
        quantized_tensors=197,
        verbatim_tensors=197,
        built=True,
        executed=False,
    )


def verification(*, exact: int = 339, passed: bool = True) -> Verification:
    """All tensors equal, and parity."""
    return Verification(
        tensors=339,
        exact_tensors=exact,
        parity=Parity(
            runtime="llama.cpp (xllamacpp 2026.10.11549)",
            tokens=321,
            mean_abs_difference=0.0351,
            max_abs_difference=0.567,
            mean_kl_nats=0.000171,
            max_kl_nats=0.0103,
            top1_agreement=0.9969,
            relative_difference=0.00972,
            typical_difference=0.0084,
            relative_maximum=0.0239,
            passed=passed,
        ),
    )


def drift_of(
    report: DriftReport, format_: str, file: FileRecord, weights_sha256: str
) -> dict[str, Any]:
    """The report as the manifest holds it, of that file."""
    measured = dataclasses.replace(
        report.artifact,
        format=format_,
        name=file.name,
        sha256=file.sha256,
        weights_sha256=weights_sha256,
    )
    fields = to_fields(without_examples(dataclasses.replace(report, artifact=measured)))
    parsed: dict[str, Any] = json.loads(json.dumps(fields))
    return parsed


COMMAND = (
    *("export", "r1-distill-qwen-7b", "--revision", REVISION, "--target", "rtx3060-8gb"),
    *("--format", "gguf,onnx,tensorrt", "--scheme", "auto", "--bpw", "4.37"),
    *("--method", "awq-gptq", "--order", "static", "--context", "8192"),
    *("--calib", "my traces.jsonl", "--calib-samples", "127", "--calib-length", "2049"),
    *("--seed", "17"),
)
"""As an export records it."""


def manifest(
    folder: Path,
    kinds: Sequence[str] = ("gguf",),
    *,
    model: str = QWEN,
    revision: str | None = REVISION,
    report: DriftReport | None = None,
) -> Manifest:
    """A manifest of these kinds; its small files, tiny-r1's, are written to `folder`."""
    for name in COMPANIONS:
        (folder / name).write_bytes((TINY_R1 / name).read_bytes())
    if "js" in kinds:
        config = json.loads((folder / "config.json").read_text())
        config["transformers.js_config"] = {"dtype": "q4f16"}
        (folder / "config.json").write_text(json.dumps(config))
    inside = sum(kind in CHECKPOINTS for kind in kinds) > 1
    return Manifest(
        schema_version=SCHEMA_VERSION,
        input=InputRecord(
            id=model,
            revision=revision,
            model_type="qwen2",
            parameters=7_615_616_512,
            files=(FileRecord(name="model.safetensors", size_bytes=15, sha256="ee" * 32),),
        ),
        target="rtx3060-8gb",
        context_tokens=8192,
        command=COMMAND,
        calibration=CalibrationRecord(
            source="traces.jsonl",
            samples=127,
            tokens=91_823,
            max_tokens=2049,
            seed=17,
            sha256="dd" * 32,
        ),
        imatrix=None,
        artifacts=tuple(
            artifact(kind, inside=inside and kind in CHECKPOINTS, report=report) for kind in kinds
        ),
        companions=tuple(hash_file(folder / name) for name in COMPANIONS),
        versions={"tightfit": "0.1.0", "torch": "2.13.0", "torch threads": "2"},
    )


def math_report(subset: str = "math500:n=64,level=4-5,seed=3") -> DriftReport:
    """Drift on MATH-500."""
    report = drift_reports.report()
    data = dataclasses.replace(report.data, subset=subset, source=subset.partition(":")[0])
    return dataclasses.replace(report, data=data)
