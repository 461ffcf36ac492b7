"""`--mtp keep` and `--mtp drop`, from the checkpoint to the verified file."""

from pathlib import Path

import pytest
from support.checkpoints import to_fp8_blocks
from support.deepseek_v3 import make_deepseek_v3
from support.reporters import Notes

from tightfit.cli.main import run
from tightfit.export.gguf.readback import describe
from tightfit.export.manifest import read_manifest
from tightfit.pipeline.export import run_export
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.requests import ExportRequest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mtp")
    plain = make_deepseek_v3(folder / "plain", mtp=True, rms_norm_eps=1e-6)
    return to_fp8_blocks(plain, folder / "model")


@pytest.mark.parametrize("keep", [False, True])
def test_what_becomes_of_the_mtp_layer(model: Path, keep: bool, tmp_path: Path) -> None:
    notes = Notes()
    request = ExportRequest(
        model=str(model),
        target="a100x8-80gb",
        output=tmp_path / "out",
        scheme="bf16",
        method=Method(algorithm=Algorithm.RTN),
        keep_mtp=keep,
    )
    run_export(request, notes)

    assert run(["verify", str(tmp_path / "out")]) == 0
    (artifact,) = read_manifest(tmp_path / "out").artifacts
    seen = describe(tmp_path / "out" / artifact.files[0].name)
    names = [tensor.name for tensor in seen.tensors]
    assert [record.name for record in artifact.tensors] == names
    assert ("blk.3.nextn.eh_proj.weight" in names) is keep
    assert seen.metadata.get("deepseek2.nextn_predict_layers") == (1 if keep else None)
    assert artifact.bits_per_weight == pytest.approx(16, abs=0.2), "of the model's own weights"
    word = "kept" if keep else "left out"
    assert any(f"multi-token-prediction layer is {word}" in line for line in notes.lines)
