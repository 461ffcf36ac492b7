from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import (
    make_checkpoint,
    rewrite_tensors,
    to_fp8_blocks,
    to_fp8_compressed_tensors,
)
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.locate import locate_model
from tightfit.calib.validate import validate

FAMILIES = ["qwen2", "qwen3", "llama"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "qwen3", "qwen3")


def opened(path: Path) -> Checkpoint:
    checkpoint = open_checkpoint(path)
    validate(checkpoint, checkpoint.architecture)
    return checkpoint


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_tensor_is_that_of_transformers(
    tmp_path: Path, family: str, sharded: bool, dtype: torch.dtype
) -> None:
    make_checkpoint(tmp_path, family, sharded=sharded, dtype=dtype)
    checkpoint = opened(tmp_path)
    names = [file.name for file in checkpoint.files]
    assert (names[0], names.count("tokenizer.json")) == ("config.json", 1)
    assert (sum(name.endswith(".safetensors") for name in names) > 1) == sharded
    assert ("model.safetensors.index.json" in names) == sharded
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).state_dict()
    assert set(checkpoint.names()) == set(expected)
    for name, tensor in expected.items():
        assert checkpoint.load(name).equal(tensor)
        assert checkpoint.shape(name) == tensor.shape
        assert checkpoint.stored_dtype(name) == checkpoint.load(name).dtype == dtype
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in expected.values())


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama", tie=True)
    checkpoint = opened(tmp_path)
    assert checkpoint.tied_head
    assert "lm_head.weight" not in checkpoint.names()
    embedding = checkpoint.load("model.embed_tokens.weight")
    assert checkpoint.load("lm_head.weight").equal(embedding)
    assert checkpoint.shape("lm_head.weight") == embedding.shape
    assert checkpoint.stored_dtype("lm_head.weight") == torch.bfloat16


def test_a_tied_head_may_be_stored_too(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama", tie=True)
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    rewrite_tensors(tmp_path, tensors | {"lm_head.weight": head})
    assert opened(tmp_path).load("lm_head.weight").equal(head)


def test_loading_maps_the_file(plain: Path) -> None:
    weight = open_checkpoint(plain).load("model.layers.0.mlp.up_proj.weight")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    begins = [
        line.split()[0].split("-")
        for line in maps.read_text().splitlines()
        if line.endswith(str(plain / "model.safetensors"))
    ]
    address = weight.data_ptr()
    assert any(int(low, 16) <= address < int(high, 16) for low, high in begins)


def test_deepseek_fp8_is_what_transformers_dequantizes(plain: Path, tmp_path: Path) -> None:
    folder = to_fp8_blocks(plain, tmp_path / "fp8")
    checkpoint = opened(folder)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=FineGrainedFP8Config(dequantize=True)
    ).state_dict()
    original = open_checkpoint(plain)
    assert set(checkpoint.names()) == set(original.names())
    for name in checkpoint.names():
        ours = checkpoint.load(name)
        if checkpoint.stored_dtype(name) != torch.float8_e4m3fn:
            assert ours.equal(original.load(name))
            continue
        assert ours.dtype == torch.float32
        assert ours.equal(theirs[name].float())
        # Three mantissa bits: at most half a step, 1/16 of the value or 2**-10 of the range.
        w_OI = original.load(name).float()
        assert ((ours - w_OI).abs() <= w_OI.abs() / 16 + w_OI.abs().max() / 448 / 1024).all()


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_compressed_tensors_fp8(plain: Path, tmp_path: Path, strategy: str) -> None:
    folder = to_fp8_compressed_tensors(plain, tmp_path / "fp8", strategy)
    checkpoint = opened(folder)
    original = open_checkpoint(plain)
    assert set(checkpoint.names()) == set(original.names())
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    expected = stored[name].float() * stored[name + "_scale"].float()
    assert checkpoint.load(name).equal(expected)
    assert checkpoint.nbytes < original.nbytes


def test_the_embedded_model_is_whole() -> None:
    checkpoint = open_checkpoint(locate_model(None))
    validate(checkpoint, checkpoint.architecture)
    assert checkpoint.source.id == "tiny-r1"
