"""The logical tensors of a DeepSeek-V3 against real checkpoints of transformers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import rewrite_tensors
from support.deepseek_v3 import checkpoint_tensors, logical_tensors, make_deepseek_v3
from torch import Tensor
from transformers import AutoModelForCausalLM

from tightfit.calib.architecture import DEEPSEEK_V3, QWEN2
from tightfit.calib.config import read_config
from tightfit.calib.dimensions import ModelDimensions, dimensions_of
from tightfit.calib.family import FoldKind, Input
from tightfit.calib.models import MODELS
from tightfit.calib.shapes import active_fraction, count_parameters, tensor_shapes

IDS = [[5, 99, 311, 42, 17, 230, 8, 64]]
VARIANTS = {"query latent": {}, "direct query": {"q_lora_rank": None}}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepseek") / "checkpoint"
    return make_deepseek_v3(folder, dtype=torch.float32, **request.param)


def test_every_tensor_of_the_checkpoint_is_in_the_table(checkpoint: Path) -> None:
    state = load_file(checkpoint / "model.safetensors")
    dimensions = dimensions_of(read_config(checkpoint))
    shapes = tensor_shapes(DEEPSEEK_V3, dimensions)
    logical = logical_tensors(state, dimensions)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in logical.items()}
    assert count_parameters(shapes) == sum(tensor.numel() for tensor in state.values())
    again = checkpoint_tensors(logical)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_the_key_part_is_what_absorbed_attention_multiplies(checkpoint: Path) -> None:
    """Scores of a head by expanded keys, and by its queries taken to the latent through k_b."""
    dimensions = dimensions_of(read_config(checkpoint))
    mla = dimensions.mla
    assert mla
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    state = load_file(checkpoint / "model.safetensors")
    k_b_HRN = logical_tensors({name: state[name]}, dimensions)[name.replace("kv_b", "k_b")]
    draw = torch.Generator().manual_seed(0)
    q_HN = torch.randn(dimensions.n_heads, mla.qk_nope_head_dim, generator=draw)
    latent_R = torch.randn(mla.kv_lora_rank, generator=draw)
    width = mla.qk_nope_head_dim + mla.v_head_dim
    expanded_H = [
        q_HN[head] @ (state[name][head * width :][: mla.qk_nope_head_dim] @ latent_R)
        for head in range(dimensions.n_heads)
    ]
    absorbed_H = [latent_R @ (k_b_HRN[head] @ q_HN[head]) for head in range(dimensions.n_heads)]
    torch.testing.assert_close(torch.stack(absorbed_H), torch.stack(expanded_H))


def test_folding_where_the_table_says_keeps_the_function(checkpoint: Path, tmp_path: Path) -> None:
    """Random scales through every input of every block; transformers computes the same logits."""
    dimensions = dimensions_of(read_config(checkpoint))
    state = load_file(checkpoint / "model.safetensors")
    values = logical_tensors(state, dimensions)
    draw = torch.Generator().manual_seed(0)
    for layer in range(dimensions.n_layers):
        for source in DEEPSEEK_V3.block_kind(layer, dimensions).inputs:
            fold(values, layer, source, draw)
    changed = checkpoint_tensors(values)
    moved = {name for name in state if not torch.equal(state[name], changed[name])}
    unmoved = {name for name in state.keys() - moved if "layers" in name}
    assert all(name.endswith("e_score_correction_bias") for name in unmoved)
    before = logits(checkpoint)
    (tmp_path / "folded").mkdir()
    for file in checkpoint.iterdir():
        (tmp_path / "folded" / file.name).write_bytes(file.read_bytes())
    rewrite_tensors(tmp_path / "folded", {n: each.contiguous() for n, each in changed.items()})
    after = logits(tmp_path / "folded")
    assert before.std() > 0.1
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def fold(values: dict[str, Tensor], layer: int, source: Input, draw: torch.Generator) -> None:
    def name(path: str) -> str:
        return DEEPSEEK_V3.tensor(layer, f"{path}.weight")

    if source.fold_kind is None:
        return
    width = values[name(source.linears[0])].shape[-1]
    into = name(source.fold_into)
    # Each expert has a scale of its own where an expert's own matrix absorbs it.
    sets = len(values[into]) if "*" in source.fold_into else 1
    scale_EI = 2.0 ** torch.randint(-2, 3, (sets, width), generator=draw)
    columns = scale_EI[:, None] if sets > 1 else scale_EI[0]
    for path in (*source.linears, *source.scaled_columns):
        values[name(path)] = values[name(path)] * columns
    for path in source.scaled_rows:
        values[name(path)] = values[name(path)] * scale_EI[0][:, None]
    if source.fold_kind is FoldKind.NORM:
        values[into] = values[into] / scale_EI[0]
    else:
        assert source.fold_kind is FoldKind.LINEAR
        rows = values[into].shape[:-1]
        values[into] = values[into] / scale_EI.reshape(rows)[..., None]


def logits(folder: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        found: Tensor = model.eval()(torch.tensor(IDS)).logits
    return found


def test_the_table_of_r1_has_no_entry_per_expert() -> None:
    shapes = tensor_shapes(DEEPSEEK_V3, r1())
    # llama.cpp's `split.tensors.count` of DeepSeek-V3's files with split kv_b.
    assert len(shapes) == 1086
    assert shapes["model.layers.3.mlp.experts.*.gate_proj.weight"] == (256, 2048, 7168)
    assert shapes["model.layers.3.mlp.experts.*.down_proj.weight"] == (256, 7168, 2048)
    assert shapes["model.layers.0.self_attn.k_b_proj.weight"] == (128, 512, 128)


def test_a_token_of_r1_reads_37_billion_weights() -> None:
    """DeepSeek's own figure (arXiv:2412.19437): 671B in all, 37B active."""
    dimensions = r1()
    shapes = tensor_shapes(DEEPSEEK_V3, dimensions)
    parts = {
        name: count_parameters({name: shape}) * active_fraction(DEEPSEEK_V3, dimensions, name)
        for name, shape in shapes.items()
    }
    assert sum(parts.values()) == pytest.approx(37e9, rel=0.02)
    assert parts["model.embed_tokens.weight"] == pytest.approx(7168)
    assert parts["lm_head.weight"] == 129280 * 7168
    assert parts["model.layers.9.mlp.experts.*.up_proj.weight"] == 8 * 2048 * 7168
    assert parts["model.layers.9.mlp.shared_experts.up_proj.weight"] == 2048 * 7168


def test_a_tied_embedding_is_read_whole() -> None:
    untied = MODELS["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"].dimensions
    assert active_fraction(QWEN2, untied, QWEN2.embedding) == 1 / 151936
    tied = replace(untied, tie_word_embeddings=True)
    assert active_fraction(QWEN2, tied, QWEN2.embedding) == 1
    assert active_fraction(QWEN2, tied, "model.layers.0.mlp.up_proj.weight") == 1


def r1() -> ModelDimensions:
    return MODELS["deepseek-ai/DeepSeek-R1"].dimensions
