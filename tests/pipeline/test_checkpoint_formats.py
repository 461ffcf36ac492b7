"""Hugging Face checkpoints: what an export writes, others read, and other formats take over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import Family, make_checkpoint, to_fp8_blocks
from support.deepseek_v3 import make_deepseek_v3
from support.reporters import Notes

from tightfit.calib.calibration import CalibrationOptions
from tightfit.cli.main import run
from tightfit.errors import UsageError
from tightfit.export.manifest import read_manifest
from tightfit.pipeline.export import run_export
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest
from tightfit.quant.algorithms.gptq import GptqSettings
from tightfit.quant.algorithms.ordering import Order
from tightfit.reporter import SilentReporter
from tightfit.targets.workload import CacheType

SMALL = CalibrationOptions(samples=4, max_tokens=48)
UNCALIBRATED = CalibrationOptions(source="none")
RTN = Method(algorithm=Algorithm.RTN)
Export = Callable[..., Path]


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("qwen2") / "model", "qwen2")


@pytest.fixture
def export(qwen2: Path, tmp_path: Path) -> Export:
    """Export into a folder of `tmp_path`; returns it."""

    def make(name: str = "out", **changes: object) -> Path:
        values: dict[str, object] = {
            "model": str(qwen2),
            "target": "rtx4090-24gb",
            "output": tmp_path / name,
            "calibration": UNCALIBRATED,
            "method": RTN,
        }
        run_export(ExportRequest(**values | changes), SilentReporter())
        return tmp_path / name

    return make


def config(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())


def hashes(folder: Path) -> dict[str, str]:
    return {made.format: made.weights_sha256 for made in read_manifest(folder).artifacts}


def test_several_checkpoints_lie_in_folders_of_their_own_and_verify(export: Export) -> None:
    formats = ("gptq", "awq", "compressed-tensors")
    folder = export(formats=formats, scheme="int4-g128", calibration=SMALL, method=Method())
    assert "quantization_config" not in config(folder)
    assert len(set(hashes(folder).values())) == 1, "one quantization for all three"
    for name in formats:
        assert (folder / name / "model.safetensors").is_file()
        assert (folder / name / "tokenizer.json").is_file()
        assert config(folder / name)["quantization_config"]["quant_method"] == name
        assert config(folder / name)["torch_dtype"] == "float16"
    assert run(["verify", str(folder)]) == 0
    for made in read_manifest(folder).artifacts:
        assert made.verification is not None
        assert made.verification.exact_tensors == made.verification.tensors
    (parity,) = (
        made.verification.parity
        for made in read_manifest(folder).artifacts
        if made.format == "compressed-tensors"
    )
    assert parity is not None
    assert parity.passed


def test_the_only_checkpoint_lies_at_the_root(export: Export) -> None:
    folder = export(formats=("gguf", "gptq"), scheme="int4-g128")
    (artifact,) = (made for made in read_manifest(folder).artifacts if made.format == "gptq")
    names = [file.name for file in artifact.files]
    assert names == ["model.safetensors", "quantize_config.json"]
    assert config(folder)["quantization_config"]["quant_method"] == "gptq"
    assert (folder / "tokenizer.json").is_file()
    assert run(["verify", str(folder)]) == 0


def test_act_order_is_stored(export: Export) -> None:
    method = Method(algorithm=Algorithm.GPTQ, gptq=GptqSettings(order=Order.ACT_ORDER))
    folder = export(formats=("gptq",), scheme="int4-g128", calibration=SMALL, method=method)
    groups = load_file(folder / "model.safetensors")["model.layers.0.mlp.gate_proj.g_idx"]
    assert not torch.equal(groups, groups.sort().values)
    assert run(["verify", str(folder)]) == 0


@pytest.mark.parametrize("scheme", ["fp8-tensor", "fp8-channel", "fp8-block128"])
def test_fp8_with_dynamic_inputs(export: Export, scheme: str) -> None:
    target = "h100x8-80gb" if scheme == "fp8-block128" else "rtx4090-24gb"
    folder = export(formats=("compressed-tensors",), scheme=scheme, target=target)
    assert config(folder)["torch_dtype"] == "bfloat16"
    assert run(["verify", str(folder)]) == 0


def test_fp8_with_static_inputs_and_cache(export: Export) -> None:
    folder = export(
        formats=("compressed-tensors",),
        scheme="fp8-tensor-static",
        calibration=SMALL,
        cache_type=CacheType.FP8,
    )
    stored = load_file(folder / "model.safetensors")
    names = [f"model.layers.1.self_attn.{kind}_scale" for kind in "kv"]
    assert all(0 < float(stored[name]) < 1 for name in names)
    assert float(stored["model.layers.0.mlp.down_proj.input_scale"]) > 0
    section = config(folder)["quantization_config"]
    assert section["kv_cache_scheme"]["num_bits"] == 8
    assert run(["verify", str(folder)]) == 0


def test_fp8_blocks_of_the_checkpoint_keep_their_bytes(
    export: Export, qwen2: Path, tmp_path: Path
) -> None:
    source = to_fp8_blocks(qwen2, tmp_path / "fp8")
    folder = export(
        model=str(source),
        formats=("compressed-tensors",),
        scheme="fp8-block128",
        target="h100x8-80gb",
    )
    before = load_file(source / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    weights = [name for name, of in before.items() if of.dtype == torch.float8_e4m3fn]
    assert len(weights) == 2 * 7
    for name in weights:
        assert torch.equal(after[name].view(torch.uint8), before[name].view(torch.uint8)), name
        assert torch.equal(after[f"{name}_scale"].float(), before[f"{name}_scale_inv"])


def test_a_mixture_has_its_experts_one_by_one(export: Export, tmp_path: Path) -> None:
    model = make_deepseek_v3(tmp_path / "model", rms_norm_eps=1e-6)
    folder = export(
        model=str(model),
        target="a100x8-80gb",
        formats=("gptq",),
        scheme="int4-g32",
    )
    stored = load_file(folder / "model.safetensors")
    assert "model.layers.2.mlp.experts.15.down_proj.qweight" in stored
    assert stored["model.layers.1.self_attn.kv_b_proj.weight"].dtype == torch.float16
    assert stored["model.layers.1.mlp.gate.weight"].dtype == torch.float32
    assert config(folder)["num_nextn_predict_layers"] == 0
    assert run(["verify", str(folder)]) == 0


@pytest.mark.parametrize(
    ("format_", "scheme"),
    [
        ("gptq", "int4-g128"),
        ("gptq", "int4-g32-asym"),
        ("awq", "int4-g64-asym"),
        ("compressed-tensors", "int4-channel"),
        ("compressed-tensors", "int4-g128-asym"),
    ],
)
def test_a_quantized_checkpoint_keeps_its_numbers_in_every_format(
    export: Export, format_: str, scheme: str
) -> None:
    source = export("checkpoint", formats=(format_,), scheme=scheme)
    assert run(["verify", str(source)]) == 0
    asymmetric = scheme.endswith("asym")
    wanted = ["gguf", "onnx"]
    if not asymmetric and "channel" not in scheme:
        wanted.append("tensorrt")
    again = export(
        "again",
        model=str(source),
        formats=tuple(wanted),
        target="cpu-16gb" if "tensorrt" not in wanted else "rtx4090-24gb",
    )
    for made in read_manifest(again).artifacts:
        assert made.weights_sha256 == hashes(source)[format_], made.format
        assert made.scheme.method == "kept"
    assert read_manifest(again).calibration is None
    assert run(["verify", str(again)]) == 0


@pytest.mark.parametrize("scheme", ["int4-g128", "fp8-channel"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_tied_head_is_no_quantized_linear(
    export: Export, tmp_path: Path, family: Family, scheme: str
) -> None:
    """It is stored nowhere, and the loader must be told of it."""
    model = make_checkpoint(tmp_path / family, family, tie=True)
    folder = export(model=str(model), formats=("compressed-tensors",), scheme=scheme)
    section = config(folder)["quantization_config"]
    assert section["ignore"] == ["lm_head"]
    assert run(["verify", str(folder)]) == 0
    (made,) = read_manifest(folder).artifacts
    assert made.verification is not None
    assert made.verification.parity is not None


def test_an_interrupted_replacement_leaves_no_foreign_configuration(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(formats=("compressed-tensors",), scheme="fp8-channel")
    before = config(folder)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("run_quantization", "write_manifest"):
        monkeypatch.setattr(f"tightfit.pipeline.export.{place}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(formats=("compressed-tensors",), scheme="int4-g128", overwrite=True)
        monkeypatch.undo()
        section = config(folder)["quantization_config"]
        stored = {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}
        assert (torch.float8_e4m3fn in stored) == (section["format"] == "float-quantized")
        assert (place == "run_quantization") == (config(folder) == before)


def test_programs_are_not_pointed_to(export: Export, qwen2: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(qwen2, model)
    named = config(model) | {"auto_map": {"AutoConfig": "configuration_mine.Mine"}}
    (model / "config.json").write_text(json.dumps(named))
    assert "auto_map" not in config(export(model=str(model), formats=("gptq",), scheme="int4-g128"))


def test_a_quantized_head_goes_where_heads_can_be(export: Export, tmp_path: Path) -> None:
    source = export("checkpoint", formats=("compressed-tensors",), scheme="int4-g128")
    tensors = load_file(source / "model.safetensors")
    # The head as the rows of a matrix of a block that is stored so.
    parts = {name: of for name, of in tensors.items() if ".0.mlp.gate_proj.weight_" in name}
    assert tensors.pop("lm_head.weight").shape == (512, 256)
    gate = "model.layers.0.mlp.gate_proj"
    head = {name.replace(gate, "lm_head"): of.clone() for name, of in parts.items()}
    save_file({**tensors, **head}, source / "model.safetensors")
    changed = config(source)
    changed["quantization_config"]["ignore"] = []
    (source / "config.json").write_text(json.dumps(changed))
    for format_ in ("gptq", "awq"):
        with pytest.raises(UsageError, match=f"{format_} keeps heads as floats"):
            export("again", model=str(source), formats=(format_,))
    export("again", model=str(source), formats=("compressed-tensors",))


def test_a_second_rounding_is_refused(export: Export) -> None:
    source = export("checkpoint", formats=("gptq",), scheme="int4-g128")
    with pytest.raises(UsageError, match="would round checkpoint again"):
        export("again", model=str(source), scheme="q4_k_m")
    with pytest.raises(UsageError, match="--head q8_0 would round"):
        export("again", model=str(source), head="q8_0")
    with pytest.raises(UsageError, match="is not quantized"):
        export("again", scheme="stored")


def test_what_gguf_cannot_hold_is_refused(export: Export) -> None:
    method = Method(algorithm=Algorithm.GPTQ, gptq=GptqSettings(order=Order.ACT_ORDER))
    ordered = export("a", formats=("gptq",), scheme="int4-g128", calibration=SMALL, method=method)
    with pytest.raises(UsageError, match="has an act-order, which gguf cannot store"):
        export("again", model=str(ordered))
    again = export("again", model=str(ordered), formats=("onnx",), target="cpu-16gb")
    assert hashes(again)["onnx"] == hashes(ordered)["gptq"]


def test_without_its_reader_the_logits_are_not_compared_and_that_is_said(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tightfit.runtimes import opening
    from tightfit.verify.run import run_verify

    folder = export(formats=("gptq",), scheme="int4-g128")
    monkeypatch.setitem(opening._CHECKPOINT_PACKAGES, "gptq", "no_such_package")
    notes = Notes()
    (artifact,) = run_verify(folder, notes).artifacts
    assert artifact.verification is not None
    assert artifact.verification.parity is None
    assert any("logits are not compared" in line for line in notes.warnings)
