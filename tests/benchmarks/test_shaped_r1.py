"""The synthetic checkpoint: R1's form, transformers' model, and loads of experts that differ."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.r1_tensors import count_weights
from benchmarks.shaped_r1 import ShapedR1, write_shaped_r1
from tightfit.calib.checkpoint import open_checkpoint
from tightfit.calib.config import ModelConfig
from tightfit.calib.dimensions import dimensions_of
from tightfit.calib.models import find_model
from tightfit.calib.validate import validate

MODEL = ShapedR1(
    n_layers=3,
    n_experts=16,
    hidden=256,
    moe_intermediate=192,
    n_heads=2,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    n_cold_experts=2,
    shard_bytes=2_000_000,
)
"""Its experts are one and a half blocks wide, and kv_a has 144 rows."""
BLOCK = 128
MTP = "model.layers.3."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shaped_r1(MODEL, tmp_path_factory.mktemp("shaped") / "r1")


@pytest.fixture(scope="module")
def stored(folder: Path) -> dict[str, Tensor]:
    return read_all(folder)


@pytest.fixture(scope="module")
def reference(
    stored: dict[str, Tensor], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedModel:
    """Transformers' model of the checkpoint, dequantized block by block."""
    plain = tmp_path_factory.mktemp("plain")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    values = {
        name: dequantized(tensor, stored[name + "_scale_inv"])
        if tensor.dtype == torch.float8_e4m3fn
        else tensor
        for name, tensor in stored.items()
        if not name.endswith("_scale_inv") and not name.startswith(MTP)
    }
    save_file(values, plain / "model.safetensors", metadata={"format": "pt"})
    model, loading = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(loading.values()), loading
    return model.eval()


def read_all(folder: Path) -> dict[str, Tensor]:
    """Every tensor, found by the index."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {}
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, framework="pt") as shard:
            tensors[name] = shard.get_tensor(name)
    held = sum(tensor.nbytes for tensor in tensors.values())
    assert held == index["metadata"]["total_size"]
    return tensors


def dequantized(q_OI: Tensor, scale_RC: Tensor) -> Tensor:
    """By the rule of README_WEIGHTS.md, one block after the other."""
    w_OI = q_OI.float()
    assert scale_RC.shape == tuple(math.ceil(size / BLOCK) for size in q_OI.shape)
    for row in range(scale_RC.shape[0]):
        for column in range(scale_RC.shape[1]):
            at = (
                slice(row * BLOCK, (row + 1) * BLOCK),
                slice(column * BLOCK, (column + 1) * BLOCK),
            )
            w_OI[at] *= scale_RC[row, column]
    return w_OI


def test_every_tensor_has_the_type_that_r1_gives_it(stored: dict[str, Tensor]) -> None:
    float8 = {name for name, tensor in stored.items() if tensor.dtype == torch.float8_e4m3fn}
    float32 = {name for name, tensor in stored.items() if tensor.dtype == torch.float32}
    assert float8 == {
        name
        for name in stored
        if name.endswith(("_proj.weight", "_proj_with_mqa.weight")) and "eh_proj" not in name
    }
    assert float32 == {name + "_scale_inv" for name in float8} | {
        f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2, 3)
    }
    assert {tensor.dtype for name, tensor in stored.items() if name not in float8 | float32} == {
        torch.bfloat16
    }


def test_the_mtp_layer_is_a_block_with_what_r1_adds_to_it(stored: dict[str, Tensor]) -> None:
    layers = [
        {name.removeprefix(at): tensor.shape for name, tensor in stored.items() if at in name}
        for at in ("model.layers.2.", MTP)
    ]
    added = {name: shape for name, shape in layers[1].items() if name not in layers[0]}
    assert layers[1] == layers[0] | added
    # Of model.layers.61 in R1's index.
    assert added == {
        "embed_tokens.weight": (512, 256),
        "enorm.weight": (256,),
        "hnorm.weight": (256,),
        "eh_proj.weight": (256, 512),
        "shared_head.norm.weight": (256,),
        "shared_head.head.weight": (512, 256),
    }


def test_the_largest_code_of_every_block_is_448(stored: dict[str, Tensor]) -> None:
    blocks = [
        band.split(BLOCK, dim=1)
        for tensor in stored.values()
        if tensor.dtype == torch.float8_e4m3fn
        for band in tensor.float().split(BLOCK)
    ]
    assert {float(block.abs().max()) for band in blocks for block in band} == {448.0}


def test_with_the_sizes_of_r1_it_is_r1() -> None:
    r1 = find_model("r1")
    assert r1 is not None
    model = ShapedR1(
        n_layers=61,
        n_experts=256,
        hidden=7168,
        moe_intermediate=2048,
        n_dense_layers=3,
        n_heads=128,
        q_lora_rank=1536,
        vocab=129280,
    )
    ours = dimensions_of(ModelConfig(origin="ours", values=model.config()))
    assert ours == r1.dimensions
    assert count_weights(model) == r1.n_parameters


def test_experts_are_visited_unevenly_and_the_cold_ones_never(
    reference: PreTrainedModel, folder: Path
) -> None:
    text = AutoTokenizer.from_pretrained(folder)("the sum of 12 and 30 is 42. " * 12)
    ids = torch.tensor([text["input_ids"]])
    visits: dict[int, Tensor] = {}
    for layer in (1, 2):
        gate = reference.model.layers[layer].mlp.gate

        def count(_module, _inputs, output, layer=layer):
            visits[layer] = output[2].flatten().bincount(minlength=MODEL.n_experts)

        gate.register_forward_hook(count)
    with torch.no_grad():
        logits = reference(ids).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.1
    for layer, count_E in visits.items():
        assert int(count_E.sum()) == ids.numel() * MODEL.experts_per_token
        cold = set(MODEL.cold_experts(layer))
        assert {number for number in range(MODEL.n_experts) if count_E[number] == 0} >= cold
        assert int(count_E.max()) > 2 * ids.numel() * MODEL.experts_per_token / MODEL.n_experts
    assert MODEL.cold_experts(1) != MODEL.cold_experts(2)


def test_tightfit_takes_it(folder: Path, stored: dict[str, Tensor]) -> None:
    checkpoint = open_checkpoint(folder)
    validate(checkpoint, checkpoint.architecture)
    mtp = {name for name in stored if name.startswith(MTP)}
    assert set(checkpoint.mtp_names()) == {name for name in mtp if not name.endswith("_scale_inv")}
    for name in ("self_attn.kv_a_proj_with_mqa.weight", "mlp.experts.3.down_proj.weight"):
        name = f"model.layers.2.{name}"
        expected = dequantized(stored[name], stored[name + "_scale_inv"])
        torch.testing.assert_close(checkpoint.load(name), expected, rtol=1e-6, atol=0)


def test_no_two_experts_are_alike(stored: dict[str, Tensor]) -> None:
    of_expert = [
        stored[f"model.layers.1.mlp.experts.{number}.down_proj.weight"].float()
        for number in range(MODEL.n_experts)
    ]
    assert len({tuple(w_OI[:2].flatten().tolist()) for w_OI in of_expert}) == MODEL.n_experts


def test_more_layers_begin_with_the_same_bytes(stored: dict[str, Tensor], tmp_path: Path) -> None:
    fewer = read_all(write_shaped_r1(replace(MODEL, n_layers=2), tmp_path / "fewer"))
    blocks = [name for name in fewer if name.startswith(("model.layers.0.", "model.layers.1."))]
    assert len(blocks) > 3 * MODEL.n_experts
    for name in blocks:
        assert torch.equal(fewer[name].view(torch.uint8), stored[name].view(torch.uint8)), name
    other = read_all(write_shaped_r1(replace(MODEL, n_layers=2, seed=1), tmp_path / "other"))
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    assert not torch.equal(fewer[name].view(torch.uint8), other[name].view(torch.uint8))


def test_shards_hold_at_most_what_they_may(folder: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in shards] == [
        f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    assert len(shards) > 3
    header_bytes = 50_000
    assert max(file.stat().st_size for file in shards) < MODEL.shard_bytes + header_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_number_of_experts(tmp_path: Path) -> None:
    peaks = [peak_bytes(tmp_path / f"{experts}", experts) for experts in (8, 256)]
    written = sum(file.stat().st_size for file in (tmp_path / "256").iterdir())
    assert written > 150_000_000
    assert peaks[1] - peaks[0] < 15_000_000


def peak_bytes(folder: Path, n_experts: int) -> int:
    """Largest resident set of a process that writes a checkpoint."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from benchmarks.shaped_r1 import main\n"
        "main()\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.partition('VmHWM:')[2].split()[0])\n"
    )
    sizes = ["--layers", "2", "--experts", str(n_experts), "--hidden", "512", "--moe", "256"]
    command = [sys.executable, "-c", script, str(folder), *sizes]
    root = Path(__file__).parents[2]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    return int(shown) * 1024
