"""Damaged DeepSeek-V3 checkpoints are refused by the name of the piece, from headers alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import rewrite_tensors, to_fp8_blocks
from support.deepseek_v3 import make_deepseek_v3
from torch import Tensor

from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.validate import validate
from tightfit.errors import CheckpointError

EXPERT = "model.layers.2.mlp.experts.11.down_proj.weight"
KV_B = "model.layers.0.self_attn.kv_b_proj.weight"
MTP_EXPERT = "model.layers.3.mlp.experts.5.up_proj.weight"
EH_PROJ = "model.layers.3.eh_proj.weight"
SHARDS = 3


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In FP8 blocks, with the MTP layer, in shards."""
    root = tmp_path_factory.mktemp("original")
    folder = to_fp8_blocks(make_deepseek_v3(root / "plain", mtp=True), root / "fp8")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: shard_name(index % SHARDS) for index, name in enumerate(sorted(tensors))}
    for shard in range(SHARDS):
        held = {name: tensors[name] for name in tensors if weight_map[name] == shard_name(shard)}
        save_file(held, folder / shard_name(shard))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def shard_name(shard: int) -> str:
    return f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"


def edit(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = {}
        for shard in range(SHARDS):
            tensors |= load_file(folder / shard_name(shard))
            (folder / shard_name(shard)).unlink()
        (folder / "model.safetensors.index.json").unlink()
        change(tensors)
        rewrite_tensors(folder, tensors)

    return apply


def edit_config(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def drop(*endings: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(endings)]:
            del tensors[name]

    return edit(change)


def put(name: str, value: Tensor) -> Callable[[Path], None]:
    return edit(lambda tensors: tensors.update({name: value}))


def truncate(folder: Path) -> None:
    shard = folder / shard_name(1)
    shard.write_bytes(shard.read_bytes()[:-1000])


CASES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a scale missing": (drop(f"{EXPERT}_scale_inv"), [f"'{EXPERT}_scale_inv' is missing"]),
    "kv_b's scale missing": (drop(f"{KV_B}_scale_inv"), [f"'{KV_B}_scale_inv' is missing"]),
    "blocks of another size": (
        edit_config(
            quantization_config={
                "quant_method": "fp8",
                "fmt": "e4m3",
                "weight_block_size": [64, 64],
            }
        ),
        ["q_a_proj.weight_scale_inv' has the shape (1, 1)", "a weight of (64, 128): (1, 2)"],
    ),
    "a scale of other blocks": (
        put(f"{EXPERT}_scale_inv", torch.ones(2, 1)),
        [f"'{EXPERT}_scale_inv' has the shape (2, 1)", "a weight of (128, 64): (1, 1)"],
    ),
    "a scale transposed": (
        put(f"{KV_B}_scale_inv", torch.ones(1, 2)),
        [f"'{KV_B}_scale_inv' has the shape (1, 2)", "(2, 1)"],
    ),
    "a truncated shard": (truncate, [shard_name(1), "truncated"]),
    "a shard missing": (lambda f: (f / shard_name(2)).unlink(), [shard_name(2), "missing"]),
    "a matrix of an expert missing": (
        drop(EXPERT, f"{EXPERT}_scale_inv"),
        ["1 of the", EXPERT],
    ),
    "an expert missing": (
        edit(lambda t: [t.pop(name) for name in list(t) if "layers.2.mlp.experts.11." in name]),
        ["3 of the", EXPERT],
    ),
    "an expert of another width": (
        put(EXPERT, torch.zeros(128, 32, dtype=torch.float8_e4m3fn)),
        [f"'{EXPERT}' has the shape (128, 32)", "(128, 64)"],
    ),
    "an expert of another type": (
        put(EXPERT, torch.zeros(128, 64, dtype=torch.int8)),
        [f"'{EXPERT}' is stored as torch.int8"],
    ),
    "an expert too many": (
        put(EXPERT.replace(".11.", ".16."), torch.zeros(128, 64, dtype=torch.bfloat16)),
        [EXPERT.replace(".11.", ".16."), "no part of a deepseek_v3 model"],
    ),
    "fewer experts promised": (
        edit_config(n_routed_experts=8),
        ["has the shape (16, 128)", "(8, 128)"],
    ),
    "kv_b missing": (drop(KV_B, f"{KV_B}_scale_inv"), ["1 of the", KV_B]),
    "kv_b of other heads": (
        put(KV_B, torch.zeros(223, 96, dtype=torch.bfloat16)),
        [f"'{KV_B}' has the shape (223, 96)", "(224, 96)"],
    ),
    "the router's correction missing": (
        drop("layers.1.mlp.gate.e_score_correction_bias"),
        ["model.layers.1.mlp.gate.e_score_correction_bias"],
    ),
    "part of the MTP layer missing": (
        drop(EH_PROJ),
        ["1 of the", "multi-token-prediction layer are missing", EH_PROJ],
    ),
    "an expert of the MTP layer missing": (
        drop(MTP_EXPERT, f"{MTP_EXPERT}_scale_inv"),
        ["multi-token-prediction layer are missing", MTP_EXPERT],
    ),
    "a scale of the MTP layer missing": (
        drop(f"{MTP_EXPERT}_scale_inv"),
        [f"'{MTP_EXPERT}_scale_inv' is missing"],
    ),
    "the MTP layer of another model": (
        put(EH_PROJ, torch.zeros(128, 128, dtype=torch.bfloat16)),
        [f"'{EH_PROJ}' has the shape (128, 128)", "(128, 256)"],
    ),
    "more in the MTP layer": (
        put("model.layers.3.extra.weight", torch.zeros(2)),
        ["model.layers.3.extra.weight", "no part of"],
    ),
    "an MTP layer that the config denies": (
        edit_config(num_nextn_predict_layers=0),
        ["model.layers.3.", "no part of"],
    ),
    "biases of attention": (edit_config(attention_bias=True), ["'attention_bias' is true"]),
    "no shared experts": (edit_config(n_shared_experts=0), ["'n_shared_experts' is 0"]),
}


def check(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    validate(checkpoint, checkpoint.architecture)


def test_the_original_is_whole(original: Path) -> None:
    check(original)


def test_the_mtp_layer_may_lack_its_copies(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "model"))
    drop("layers.3.embed_tokens.weight", "layers.3.shared_head.head.weight")(folder)
    check(folder)
    assert "model.layers.3.enorm.weight" in open_checkpoint(folder).mtp_names()


@pytest.mark.parametrize("case", CASES)
def test_refused_by_name(case: str, original: Path, tmp_path: Path) -> None:
    damage, sentences = CASES[case]
    folder = tmp_path / "model"
    shutil.copytree(original, folder)
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        check(folder)
    text = " ".join((caught.value.problem, caught.value.allowed or ""))
    assert all(sentence in text for sentence in sentences), text
    assert caught.value.hint
