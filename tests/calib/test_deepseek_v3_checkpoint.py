"""A DeepSeek-V3 checkpoint by logical and by stored names, in BF16 and in R1's FP8 blocks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import FP8_BLOCK, to_fp8_blocks
from support.deepseek_v3 import logical_tensors, make_deepseek_v3
from torch import Tensor

from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.experts import expert_names
from tightfit.calib.shapes import mtp_shapes, tensor_shapes
from tightfit.calib.validate import validate

FORMS = ["bfloat16", "fp8"]
MTP = "model.layers.3."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("deepseek")
    plain = make_deepseek_v3(root / "bfloat16", mtp=True)
    return {"bfloat16": plain, "fp8": to_fp8_blocks(plain, root / "fp8")}


def opened(folder: Path) -> Checkpoint:
    checkpoint = open_checkpoint(folder)
    validate(checkpoint, checkpoint.architecture)
    return checkpoint


def stored_values(folder: Path) -> dict[str, Tensor]:
    """What the file's tensors stand for: w[o, i] = q[o, i] * s[o // 128, i // 128]."""
    state = load_file(folder / "model.safetensors")
    values = {}
    for name, tensor in state.items():
        if tensor.dtype == torch.float8_e4m3fn:
            row, column = (torch.arange(size) // FP8_BLOCK for size in tensor.shape)
            tensor = tensor.float() * state[f"{name}_scale_inv"][row[:, None], column]
        if not name.endswith("_scale_inv"):
            values[name] = tensor
    return values


@pytest.mark.parametrize("form", FORMS)
def test_every_name_gives_what_the_file_stands_for(folders: dict[str, Path], form: str) -> None:
    checkpoint = opened(folders[form])
    stored = stored_values(folders[form])
    logical = logical_tensors(stored, checkpoint.dimensions)
    assert set(checkpoint.names()) == set(stored)
    both = tensor_shapes(checkpoint.architecture, checkpoint.dimensions)
    both |= mtp_shapes(checkpoint.architecture, checkpoint.dimensions)
    assert both == {name: tuple(tensor.shape) for name, tensor in logical.items()}
    for name, expected in (stored | logical).items():
        tensor = checkpoint.load(name)
        assert tensor.dtype == expected.dtype
        assert tensor.equal(expected)
        assert checkpoint.shape(name) == expected.shape


def test_plain_parts_of_the_heads_stay_as_stored(folders: dict[str, Path]) -> None:
    checkpoint = opened(folders["bfloat16"])
    for part in ("k_b", "v_b"):
        name = f"model.layers.1.self_attn.{part}_proj.weight"
        assert checkpoint.load(name).dtype == checkpoint.stored_dtype(name) == torch.bfloat16


def test_the_fp8_form_is_that_of_r1(folders: dict[str, Path]) -> None:
    """All linears, kv_a's 112 rows and kv_b's 224 too; routers and eh_proj are BF16."""
    checkpoint = opened(folders["fp8"])
    float8 = {n for n in checkpoint.names() if checkpoint.stored_dtype(n) == torch.float8_e4m3fn}
    linears = {n for n in checkpoint.names() if n.endswith(("_proj.weight", "with_mqa.weight"))}
    assert float8 == linears - {f"{MTP}eh_proj.weight"}
    stack = "model.layers.1.mlp.experts.*.up_proj.weight"
    assert checkpoint.stored_dtype(stack) == torch.float8_e4m3fn
    assert checkpoint.stored_dtype("model.layers.1.mlp.gate.weight") == torch.bfloat16


def test_fp8_as_the_file_holds_it(folders: dict[str, Path]) -> None:
    checkpoint = opened(folders["fp8"])
    state = load_file(folders["fp8"] / "model.safetensors")
    names = (*expert_names(checkpoint.architecture, 1, 7), "model.layers.0.self_attn.o_proj.weight")
    for name in names:
        kept = checkpoint.load_float8(name)
        assert kept is not None
        assert kept.values_OI.dtype == torch.float8_e4m3fn
        assert kept.values_OI.view(torch.uint8).equal(state[name].view(torch.uint8))
        assert kept.scale.equal(state[f"{name}_scale_inv"])
    for name in (
        "model.embed_tokens.weight",
        "model.layers.1.mlp.experts.*.up_proj.weight",
        "model.layers.1.self_attn.k_b_proj.weight",
    ):
        assert checkpoint.load_float8(name) is None
    assert opened(folders["bfloat16"]).load_float8(names[0]) is None


@pytest.mark.parametrize("form", FORMS)
def test_the_mtp_layer_is_recognised(folders: dict[str, Path], form: str) -> None:
    checkpoint = opened(folders[form])
    held = checkpoint.mtp_names()
    assert set(held) == {name for name in checkpoint.names() if name.startswith(MTP)}
    assert f"{MTP}eh_proj.weight" in held
    assert f"{MTP}mlp.experts.15.down_proj.weight" in held


def test_a_checkpoint_without_the_mtp_layer_is_whole(tmp_path: Path) -> None:
    checkpoint = opened(make_deepseek_v3(tmp_path / "model"))
    assert checkpoint.dimensions.n_mtp_layers == 1
    assert checkpoint.mtp_names() == ()
