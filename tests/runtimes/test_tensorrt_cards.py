"""Every card and weight type that we promise, and TensorRT's own opinion of our table."""

import pytest
from support.checkpoints import smollm2_checkpoint
from support.tensorrt_models import decoder_onnx, engine_of, matmul_onnx

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.locate import locate_model
from tightfit.errors import RuntimeFailureError
from tightfit.export.tensorrt.structure import check_structure
from tightfit.export.tensorrt.support import CARDS, WEIGHT_TYPES, check_support
from tightfit.runtimes.tensorrt.memory import build_memory_bytes

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is an optional, proprietary package")
LAYER_MATRICES = 7
ALL_CARDS, FP8_CARDS = ("8.0", "8.6", "8.9", "12.0"), ("8.9", "12.0")


def build_and_check(folder, onnx_file, grid, capabilities):
    for capability in capabilities:
        check_support(capability, [grid] if grid != "float16" else [])
    report = engine_of(onnx_file, folder, *capabilities)
    found = check_structure(
        report.file, onnx_file, capabilities=capabilities, log_file=report.log_file
    )
    assert found.passed, found.problems
    data_bytes = onnx_file.with_name("model.onnx.data").stat().st_size
    assert report.peak_bytes <= build_memory_bytes(data_bytes)
    assert report.size_bytes >= data_bytes
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    checkpoint = open_checkpoint(locate_model("tiny-r1").path)

    def onnx_file(grid):
        return decoder_onnx(tmp_path_factory.mktemp(grid), checkpoint, grid)

    grids = ("int4-g128-sym", "float16", "fp8-e4m3-channel")
    return {grid: onnx_file(grid) for grid in grids}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "capability"),
    [
        *(("int4-g128-sym", card) for card in ALL_CARDS),
        *(("float16", card) for card in ALL_CARDS),
        *(("fp8-e4m3-channel", card) for card in FP8_CARDS),
    ],
)
def test_tiny_r1_for_every_card(tiny, tmp_path, grid, capability):
    found = build_and_check(tmp_path, tiny[grid], grid, [capability])
    matrices = 0 if grid == "float16" else 4 * LAYER_MATRICES
    assert found.quantized_tensors == found.verbatim_tensors == found.typed_tensors == matrices


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["8.0", "8.6"])
def test_tiny_r1_in_fp8_is_refused_by_tensorrt_too(tiny, tmp_path, capability):
    with pytest.raises(RuntimeFailureError, match="fp8"):
        engine_of(tiny["fp8-e4m3-channel"], tmp_path, capability)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "embedding", "capabilities"),
    [
        ("int4-g64-sym", "float16", ALL_CARDS),
        ("int4-g64-sym", "int8-channel-sym", ["8.6"]),
        ("float16", "float16", ALL_CARDS),
        ("fp8-e4m3-channel", "float16", FP8_CARDS),
    ],
)
def test_smollm2_for_all_cards_in_one_plan(smollm2, tmp_path, grid, embedding, capabilities):
    onnx_file = decoder_onnx(tmp_path, smollm2, grid, embedding=embedding)
    found = build_and_check(tmp_path, onnx_file, grid, capabilities)
    matrices = (grid != "float16") * 30 * LAYER_MATRICES + (embedding != "float16")
    assert found.quantized_tensors == found.verbatim_tensors == found.typed_tensors == matrices


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    return open_checkpoint(smollm2_checkpoint(tmp_path_factory.mktemp("smollm2") / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("weight_type", ["float16", "int8", "int4", "fp8"])
@pytest.mark.parametrize("capability", CARDS)
def test_the_table_is_tensorrts(tmp_path, weight_type, capability):
    folder = tmp_path / "onnx"
    folder.mkdir()
    onnx_file = matmul_onnx(folder, weight_type)
    if capability in WEIGHT_TYPES[weight_type]:
        assert engine_of(onnx_file, tmp_path, capability).size_bytes > 0
        return
    # TensorRT names the type in its refusal.
    with pytest.raises(RuntimeFailureError, match=weight_type):
        engine_of(onnx_file, tmp_path, capability)
