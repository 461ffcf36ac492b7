"""Every way in which a model folder can be wrong has its own sentence."""

import json
import shutil
import struct
from collections.abc import Callable
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

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.validate import validate
from tightfit.errors import CheckpointError

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    single = make_checkpoint(root / "single", "llama", hidden=128)
    return {
        "single": single,
        "sharded": make_checkpoint(root / "sharded", "llama", hidden=128, sharded=True),
        "tied": make_checkpoint(root / "tied", "llama", hidden=128, tie=True),
        "fp8": to_fp8_blocks(single, root / "fp8"),
        "channel": to_fp8_compressed_tensors(single, root / "channel", "channel"),
    }


def check(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    validate(checkpoint, checkpoint.architecture)


def refusal(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        check(folder)
    assert caught.value.hint or caught.value.allowed
    return caught.value


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    edit(tensors)
    rewrite_tensors(folder, tensors)


def edit_header(folder: Path, edit: Callable[[dict], object]) -> None:
    data = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def edit_index(folder: Path, edit: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def one_shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def pickles_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def gguf_only(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / WEIGHTS).rename(folder / "model-q4_k_m.gguf")


def lfs_pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def fp8_without_scheme(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.float8_e4m3fn)}))


CASES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no config": ("single", lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "only a GGUF": ("single", gguf_only, "model-q4_k_m.gguf"),
    "config is no JSON": (
        "single",
        lambda f: (f / "config.json").write_text("{"),
        "not valid JSON",
    ),
    "config lacks a size": (
        "single",
        lambda f: edit_config(f, hidden_size=None),
        "'hidden_size' is missing",
    ),
    "config has a wrong type": (
        "single",
        lambda f: edit_config(f, num_hidden_layers="2"),
        "'num_hidden_layers' is '2'",
    ),
    "unknown family": ("single", lambda f: edit_config(f, model_type="mamba"), "'mamba'"),
    "no weights": ("single", lambda f: (f / WEIGHTS).unlink(), "holds no weights"),
    "pickles": ("single", pickles_only, "pickles: pytorch_model.bin"),
    "shards without index": ("sharded", lambda f: (f / INDEX).unlink(), f"no {INDEX}"),
    "missing shard": ("sharded", lambda f: one_shard(f).unlink(), "shards are missing: model-0"),
    "index of another version": (
        "sharded",
        lambda f: edit_index(f, lambda m: m.update({"model.new.weight": one_shard(f).name})),
        "the index says that it holds 'model.new.weight'",
    ),
    "index leaves the folder": (
        "sharded",
        lambda f: edit_index(f, lambda m: m.update({Q_PROJ: "../secret.safetensors"})),
        "'../secret.safetensors'",
    ),
    "index is no JSON": ("sharded", lambda f: (f / INDEX).write_text("[]"), "weight_map"),
    "truncated data": (
        "single",
        lambda f: cut(f / WEIGHTS, (f / WEIGHTS).stat().st_size - 1),
        "truncated",
    ),
    "truncated shard": ("sharded", lambda f: cut(one_shard(f), 5000), "truncated"),
    "truncated header": ("single", lambda f: cut(f / WEIGHTS, 100), "its header alone has"),
    "empty file": ("single", lambda f: cut(f / WEIGHTS, 0), "it has only 0 bytes"),
    "bytes at the end": (
        "single",
        lambda f: (f / WEIGHTS).open("ab").write(b"xx"),
        "2 bytes follow the last tensor",
    ),
    "huge header": (
        "single",
        lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 64),
        "its header claims 18446744073709551615 bytes",
    ),
    "Git LFS pointer": ("single", lfs_pointer, "Git LFS pointer"),
    "header gap": (
        "single",
        lambda f: edit_header(f, lambda h: h.pop(Q_PROJ)),
        "a gap or an overlap",
    ),
    "header entry malformed": (
        "single",
        lambda f: edit_header(f, lambda h: h.update({Q_PROJ: {"dtype": "BF16"}})),
        "malformed",
    ),
    "header spans lie": (
        "single",
        lambda f: edit_header(f, lambda h: h[Q_PROJ]["shape"].append(2)),
        "needs",
    ),
    "negative shape": (
        "single",
        lambda f: edit_header(f, lambda h: h[Q_PROJ].update(shape=[-128, -128])),
        "the shape [-128, -128]",
    ),
    "unheard-of type": (
        "single",
        lambda f: edit_header(f, lambda h: h[Q_PROJ].update(dtype="F4")),
        "stored as F4",
    ),
    "missing tensor": ("single", lambda f: edit_tensors(f, lambda t: t.pop(Q_PROJ)), Q_PROJ),
    "missing head": (
        "single",
        lambda f: edit_tensors(f, lambda t: t.pop("lm_head.weight")),
        "does not tie it",
    ),
    "wrong linear shape": (
        "single",
        lambda f: edit_tensors(f, lambda t: t.update({Q_PROJ: t[Q_PROJ][:-1].contiguous()})),
        "has the shape (127, 128)",
    ),
    "transposed linear": (
        "single",
        lambda f: edit_tensors(
            f,
            lambda t: t.update(
                {"model.layers.0.mlp.up_proj.weight": torch.zeros(128, 256, dtype=torch.bfloat16)}
            ),
        ),
        "has the shape (128, 256)",
    ),
    "wrong norm shape": (
        "single",
        lambda f: edit_tensors(f, lambda t: t.update({"model.norm.weight": torch.ones(3)})),
        "has the shape (3,)",
    ),
    "embedding of another vocabulary": (
        "single",
        lambda f: edit_config(f, vocab_size=513),
        "config.json promises (513, 128)",
    ),
    "integer weights": (
        "single",
        lambda f: edit_tensors(f, lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.int8)})),
        "stored as torch.int8",
    ),
    "double precision": (
        "single",
        lambda f: edit_tensors(f, lambda t: t.update({Q_PROJ: t[Q_PROJ].double()})),
        "stored as torch.float64",
    ),
    "FP8 without a scheme": ("single", fp8_without_scheme, "stored as torch.float8_e4m3fn"),
    "a layer too many": (
        "single",
        lambda f: edit_config(f, num_hidden_layers=1),
        "tensors that no part of a llama model",
    ),
    "an adapter inside": (
        "single",
        lambda f: edit_tensors(f, lambda t: t.update({"q_proj.lora_A.weight": torch.ones(2, 2)})),
        "q_proj.lora_A.weight",
    ),
    "biases that the config denies": (
        "single",
        lambda f: edit_tensors(
            f, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(128)})
        ),
        "self_attn.q_proj.bias",
    ),
    "biases that the config promises": (
        "single",
        lambda f: edit_config(f, attention_bias=True),
        "8 of the 29 tensors that config.json promises are missing",
    ),
    "a tied head that differs": (
        "tied",
        lambda f: edit_tensors(
            f,
            lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
        ),
        "the two differ",
    ),
    "FP8 scale missing": (
        "fp8",
        lambda f: edit_tensors(f, lambda t: t.pop(Q_PROJ + "_scale_inv")),
        f"its scale '{Q_PROJ}_scale_inv' is missing",
    ),
    "FP8 scale of a wrong shape": (
        "fp8",
        lambda f: edit_tensors(f, lambda t: t.update({Q_PROJ + "_scale_inv": torch.ones(2, 1)})),
        "_scale_inv' has the shape (2, 1)",
    ),
    "FP8 scale in a wrong type": (
        "fp8",
        lambda f: edit_tensors(
            f, lambda t: t.update({Q_PROJ + "_scale_inv": torch.ones(1, 1, dtype=torch.int32)})
        ),
        "stored as torch.int32",
    ),
    "FP8 channel scale of a wrong shape": (
        "channel",
        lambda f: edit_tensors(f, lambda t: t.update({Q_PROJ + "_scale": torch.ones(64, 1)})),
        "_scale' has the shape (64, 1)",
    ),
    "scale without its FP8 weight": (
        "fp8",
        lambda f: edit_tensors(f, lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.bfloat16)})),
        f"{Q_PROJ}_scale_inv",
    ),
    "quantized, undeclared": (
        "single",
        lambda f: edit_tensors(
            f, lambda t: t.update({"model.layers.0.self_attn.q_proj.qweight": torch.ones(2)})
        ),
        "already quantized (GPTQ or AWQ)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_with_its_own_sentence(
    case: str, originals: dict[str, Path], tmp_path: Path
) -> None:
    original, damage, sentence = CASES[case]
    folder = tmp_path / "model"
    shutil.copytree(originals[original], folder)
    damage(folder)
    assert sentence in str(refusal(folder))


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "e5m2"),
        (
            {
                "quant_method": "fp8",
                "weight_block_size": [128, 128],
                "weight_scale_semantics": "inverse",
            },
            "gptqmodel",
        ),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
            "compressed-tensors, nvfp4-pack-quantized",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "naive-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}},
            },
            "compressed-tensors, 8-bit int",
        ),
        ({"load_in_8bit": True}, "without a quant_method"),
    ],
)
def test_an_already_quantized_checkpoint_is_refused_by_name(
    originals: dict[str, Path], tmp_path: Path, section: dict[str, object], named: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(originals["single"], folder)
    edit_config(folder, quantization_config=section)
    error = refusal(folder)
    assert "already quantized" in error.problem
    assert named in error.problem


def test_recomputed_buffers_and_activation_scales_are_no_mistake(
    originals: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(originals["channel"], folder)
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16),
        "model.layers.0.self_attn.q_proj.input_scale": torch.ones(1),
        "model.layers.0.self_attn.k_scale": torch.ones(1),
    }
    edit_tensors(folder, lambda tensors: tensors.update(extra))
    check(folder)
