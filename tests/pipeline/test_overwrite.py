"""One result in place of another: what the new one lacks goes, what is not ours stays."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tensorrt_folders import contents

from tightfit.cli.main import run
from tightfit.errors import ArtifactError, UsageError
from tightfit.export.manifest import read_manifest
from tightfit.export.onnx.naming import SECTION, OnnxLayout
from tightfit.export.onnx.options import Dialect
from tightfit.pipeline.export import run_export
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter
from tightfit.verify.integrity import check_files

Build = Callable[..., ExportRequest]
COMPANIONS = {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}


def export(request: ExportRequest) -> set[str]:
    """Names below the folder afterwards; all that the manifest lists is there."""
    run_export(request, SilentReporter())
    manifest = read_manifest(request.output)
    check_files(request.output, manifest.companions)
    for artifact in manifest.artifacts:
        check_files(request.output, artifact.files)
    return set(contents(request.output)) - COMPANIONS - {"tightfit.json"}


def test_one_format_in_place_of_two(request_for: Build) -> None:
    both = request_for(formats=("gguf", "onnx"), scheme="int4-g128")
    assert export(both) == {
        "model-Q4_0.gguf",
        "onnx/model.onnx",
        "onnx/model.onnx.data",
        "genai_config.json",
    }

    assert export(request_for(scheme="int4-g128", overwrite=True)) == {"model-Q4_0.gguf"}

    assert not (both.output / "onnx").exists()
    assert [made.format for made in read_manifest(both.output).artifacts] == ["gguf"]


def test_another_layout_leaves_no_old_data_file(request_for: Build) -> None:
    layout = OnnxLayout.TRANSFORMERS_JS
    request = request_for(formats=("onnx",), scheme="int4-g128", onnx_layout=layout)
    old = export(request)
    assert old == {"onnx/model_q4f16.onnx", "onnx/model_q4f16.onnx_data", "genai_config.json"}
    assert SECTION in json.loads((request.output / "config.json").read_text())

    new = export(request_for(formats=("onnx",), scheme="int4-g128", overwrite=True))

    assert new == {"onnx/model.onnx", "onnx/model.onnx.data", "genai_config.json"}
    assert SECTION not in json.loads((request.output / "config.json").read_text())

    # genai runs only the ort dialect.
    dialect = Dialect.STANDARD
    standard = request_for(
        formats=("onnx",), scheme="int4-g128", onnx_dialect=dialect, overwrite=True
    )
    assert export(standard) == {"onnx/model.onnx", "onnx/model.onnx.data"}


def test_foreign_files_stay(request_for: Build) -> None:
    request = request_for(formats=("gguf", "onnx"), scheme="int4-g128")
    export(request)
    foreign = {"onnx/notes.txt": "mine", "README.md": "mine too"}
    for name, text in foreign.items():
        (request.output / name).write_text(text)

    left = export(request_for(scheme="int4-g128", overwrite=True))

    assert left == {"model-Q4_0.gguf", *foreign}
    assert (request.output / "onnx" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["onnx/model.onnx", "onnx/model.onnx.data"])
def test_an_onnx_file_that_is_not_ours_is_not_replaced(request_for: Build, name: str) -> None:
    request = request_for(formats=("onnx",), scheme="int4-g128")
    path = request.output / name
    path.parent.mkdir(parents=True)
    path.write_text("somebody's")

    with pytest.raises(ArtifactError, match=f"{name} exists already"):
        run_export(request, SilentReporter())

    assert path.read_text() == "somebody's"


def test_the_same_result_is_not_replaced_unasked(request_for: Build) -> None:
    request = request_for(formats=("onnx",), scheme="int4-g128")
    export(request)
    before = contents(request.output)
    with pytest.raises(ArtifactError, match=r"tightfit\.json exists already") as caught:
        run_export(request, SilentReporter())
    assert "--overwrite" in caught.value.hint
    assert contents(request.output) == before


@pytest.mark.parametrize("command", ["verify", "inspect", "build-engine"])
def test_a_manifest_of_an_older_tightfit_is_a_sentence(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tightfit.json").write_text(json.dumps({"schema_version": 1, "artifact": {}}))

    assert run([command, str(tmp_path)]) == 1

    said = capsys.readouterr().err
    assert "error: tightfit.json has schema version 1" in said
    assert "hint:  export again" in said


def test_quantizations_of_one_name_do_not_share_units(request_for: Build) -> None:
    """f16 keeps norms as float32 in a GGUF and as float16 in ONNX, with one head in both."""
    request = request_for(formats=("gguf", "onnx"), scheme="f16", head="int8-g32-sym")
    export(request)
    artifacts = {made.format: made for made in read_manifest(request.output).artifacts}
    grids = {
        name: {tensor.grid for tensor in made.tensors if len(tensor.shape) == 1}
        for name, made in artifacts.items()
    }
    assert grids == {"gguf": {"F32"}, "onnx": {"float16"}}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"capabilities": ("8.9",)}, "--also-for is for --format tensorrt"),
        ({"onnx_dialect": Dialect.STANDARD}, "--onnx-dialect is for --format onnx"),
        ({"onnx_layout": OnnxLayout.TRANSFORMERS_JS}, "--onnx-layout is for --format onnx"),
        (
            {"formats": ("onnx",), "scheme": "int4-g128", "split_max_bytes": 10**6},
            "--split-max-size is for --format gguf",
        ),
        (
            {
                "formats": ("onnx",),
                "scheme": "fp8-channel",
                "target": "rtx4090-24gb",
                "onnx_layout": OnnxLayout.TRANSFORMERS_JS,
            },
            "Transformers.js has no file name for the scheme fp8-channel",
        ),
    ],
)
def test_options_that_no_format_takes(
    request_for: Build, options: dict[str, object], named: str
) -> None:
    request = request_for(**options)
    with pytest.raises(UsageError, match=named):
        run_export(request, SilentReporter())
    assert not request.output.exists()
