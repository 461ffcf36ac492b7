"""DeepSeek-V3 as llama.cpp's `deepseek2`: run there, from BF16 and FP8, against transformers."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, LlamaFileType
from numpy.typing import NDArray
from support.checkpoints import rewrite_tensors, to_fp8_blocks
from support.deepseek_v3 import YARN, make_deepseek_v3
from support.llamacpp_drafts import draft_logits
from torch import Tensor
from transformers import AutoModelForCausalLM

from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.models import MODELS
from tightfit.calib.shapes import tensor_shapes
from tightfit.errors import CheckpointError
from tightfit.export.gguf.deepseek2 import check_deepseek2
from tightfit.export.gguf.metadata import ModelIdentity, model_entries
from tightfit.export.gguf.writer import write_gguf
from tightfit.export.weights import LogicalWeight, LogicalWeights, StackedWeight
from tightfit.pipeline.gguf_artifact import gguf_metadata, gguf_tensors
from tightfit.pipeline.lossless import lossless_gguf
from tightfit.pipeline.mtp_weights import mtp_weights
from tightfit.pipeline.weights import checkpoint_weights
from tightfit.runtimes.llamacpp import LlamaCpp
from tightfit.targets.schemes.ggml_file_types import ggml_file_type

MAX_DIFFERENCE = 3e-5
"""Float32 on both sides measures 2e-6; a wrong key, row order or router gives over 0.1."""
MAX_DRAFT_DIFFERENCE = 2e-3
"""Of drafted logits: 1.5e-4 is measured; eh_proj with its halves exchanged gives 3.5."""
N_TOKENS = 100
"""More than the 32 that the model was first trained on: every branch of yarn acts."""
LIKE_R1 = {"rms_norm_eps": 1e-6}
SCORES_AS_ROTATION = {
    **YARN,
    "attention_factor": 0.1 * math.log(4.0) + 1.0,
    "mscale_all_dim": 1.0,
}
"""Both factors are the same: llama.cpp's multiplier is 0, which it takes for none at all."""
CASES: dict[str, dict[str, object]] = {
    "yarn": {},
    "no-yarn": {"yarn": False},
    "yarn-as-in-r1": {"rope_parameters": {**YARN, "mscale": 1.0}},
    "yarn-without-factor-on-scores": {"rope_parameters": {**YARN, "mscale_all_dim": None}},
    "yarn-with-equal-factors": {"rope_parameters": SCORES_AS_ROTATION},
    "all-groups": {"yarn": False, "n_group": 2, "topk_group": 2, "norm_topk_prob": False},
    "no-query-latent": {
        "q_lora_rank": None,
        "num_hidden_layers": 27,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    },
}
R1 = MODELS["deepseek-ai/DeepSeek-R1"]


def config(case: dict[str, object]) -> dict[str, object]:
    rope = case.get("rope_parameters")
    theta = {"rope_parameters": {"rope_theta": 10000.0, **rope}} if isinstance(rope, dict) else {}
    return LIKE_R1 | case | theta


def tokens() -> list[int]:
    return torch.randint(0, 512, (N_TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()


def in_transformers(checkpoint: Checkpoint, plain: Path) -> NDArray[np.float32]:
    """Logits on the checkpoint's numbers; `plain` is the same model in BF16, and is overwritten."""
    rewrite_tensors(plain, {name: checkpoint.load(name).float() for name in checkpoint.names()})
    model = AutoModelForCausalLM.from_pretrained(
        plain, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens()])).logits[0].numpy()


def in_llamacpp(path: Path) -> NDArray[np.float32]:
    with LlamaCpp(path, context_tokens=512, threads=1, kv_type="f32") as runtime:
        return runtime.logits(tokens())


def exact_weights(checkpoint: Checkpoint) -> LogicalWeights:
    """In float32, which holds every number of BF16 and FP8 weights."""
    shapes = tensor_shapes(checkpoint.architecture, checkpoint.dimensions)
    return checkpoint_weights(checkpoint, dict.fromkeys(shapes, "F32"))


def write(
    checkpoint: Checkpoint, path: Path, weights: LogicalWeights, **options: int
) -> tuple[Path, ...]:
    n_mtp_layers = options.pop("n_mtp_layers", 0)
    return write_gguf(
        path,
        metadata=gguf_metadata(
            checkpoint, ggml_file_type("f32"), importance=None, n_mtp_layers=n_mtp_layers
        ),
        tensors=[tensor.stored for tensor in gguf_tensors(checkpoint, weights)],
        **options,
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_llama_cpp_computes_what_transformers_does(case: dict[str, object], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_deepseek_v3(tmp_path / "model", **config(case)))
    (path,) = write(checkpoint, tmp_path / "m.gguf", exact_weights(checkpoint))
    expected = in_transformers(checkpoint, checkpoint.path)
    assert abs(in_llamacpp(path) - expected).max() < MAX_DIFFERENCE
    assert expected.std() > 0.1, "logits too flat to tell a mistake"


def test_native_fp8_in_several_files(tmp_path: Path) -> None:
    plain = make_deepseek_v3(tmp_path / "plain", **LIKE_R1)
    checkpoint = open_checkpoint(to_fp8_blocks(plain, tmp_path / "fp8"))
    assert checkpoint.load_float8("model.layers.1.mlp.experts.7.up_proj.weight") is not None
    files = write(
        checkpoint, tmp_path / "m.gguf", exact_weights(checkpoint), split_max_bytes=600_000
    )
    assert files[-1].name == f"m-{len(files):05d}-of-{len(files):05d}.gguf"
    assert len(files) > 3
    expected = in_transformers(checkpoint, plain)
    assert abs(in_llamacpp(files[0]) - expected).max() < MAX_DIFFERENCE


def test_the_lossless_baseline_of_fp8(tmp_path: Path) -> None:
    """Embedding and head are BF16, for which llama.cpp rounds what it multiplies them with."""
    plain = make_deepseek_v3(tmp_path / "plain", **LIKE_R1)
    checkpoint = open_checkpoint(to_fp8_blocks(plain, tmp_path / "fp8"))
    with lossless_gguf(checkpoint, tmp_path) as path:
        types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
        found = in_llamacpp(path)
    assert types["token_embd.weight"] == "BF16"
    assert types["blk.1.ffn_up_exps.weight"] == types["blk.1.ffn_gate_inp.weight"] == "F32"
    assert abs(found - in_transformers(checkpoint, plain)).max() < 0.01


@pytest.fixture
def with_mtp(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(make_deepseek_v3(tmp_path / "model", mtp=True, **LIKE_R1))


def test_a_kept_mtp_layer_changes_no_logits(with_mtp: Checkpoint, tmp_path: Path) -> None:
    trunk = exact_weights(with_mtp)
    (without,) = write(with_mtp, tmp_path / "without.gguf", trunk)
    drafting = mtp_weights(with_mtp)
    (path,) = write(with_mtp, tmp_path / "m.gguf", {**trunk, **drafting}, n_mtp_layers=1)

    reader = GGUFReader(path)
    assert reader.fields["deepseek2.block_count"].contents() == 4
    assert reader.fields["deepseek2.nextn_predict_layers"].contents() == 1
    added = {tensor.name for tensor in reader.tensors if tensor.name.startswith("blk.3.")}
    last = {tensor.name for tensor in reader.tensors if tensor.name.startswith("blk.2.")}
    own = ("eh_proj", "enorm", "hnorm", "shared_head_norm")
    assert added == {name.replace("blk.2.", "blk.3.") for name in last} | {
        f"blk.3.nextn.{name}.weight" for name in own
    }
    assert np.array_equal(in_llamacpp(path), in_llamacpp(without))


def test_llama_cpp_drafts_with_a_kept_mtp_layer(with_mtp: Checkpoint, tmp_path: Path) -> None:
    """Held against the layer's formula around a block of transformers (see `deepseek_v3`)."""
    drafting = {name: in_float32(weight) for name, weight in mtp_weights(with_mtp).items()}
    (path,) = write(
        with_mtp, tmp_path / "m.gguf", {**exact_weights(with_mtp), **drafting}, n_mtp_layers=1
    )
    draw = torch.Generator().manual_seed(3)
    ids_T = torch.randint(0, 512, (40,), generator=draw)
    hidden_TD = torch.randn(40, 128, generator=draw)
    found = draft_logits(path, ids_T.int().numpy(), hidden_TD.numpy(), vocab_size=512)
    expected = draft_in_transformers(with_mtp, ids_T, hidden_TD)
    assert abs(found - expected.numpy()).max() < MAX_DRAFT_DIFFERENCE
    assert expected.std() > 0.1


def in_float32(weight: LogicalWeight) -> LogicalWeight:
    if isinstance(weight, StackedWeight):
        parts = [dataclasses.replace(part, dtype=torch.float32) for part in weight.parts]
        return StackedWeight(parts=parts)
    return dataclasses.replace(weight, dtype=torch.float32)


@torch.no_grad()
def draft_in_transformers(checkpoint: Checkpoint, ids_T: Tensor, hidden_TD: Tensor) -> Tensor:
    """The last block of the model with the parameters of the MTP layer, inside its two joints."""

    def load(name: str) -> Tensor:
        return checkpoint.load(name).float()

    def norm(x_TD: Tensor, name: str) -> Tensor:
        return torch.nn.functional.rms_norm(
            x_TD, x_TD.shape[-1:], load(f"{own}{name}.weight"), 1e-6
        )

    own = "model.layers.3."
    tensors = {name: load(name) for name in checkpoint.names()}
    block = {name: name.replace(own, "model.layers.2.") for name in tensors if own in name}
    last = {new: tensors[name].clone() for name, new in block.items() if new in tensors}
    rewrite_tensors(checkpoint.path, tensors | last)
    causal = AutoModelForCausalLM.from_pretrained(
        checkpoint.path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    embedded_TD = tensors["model.embed_tokens.weight"][ids_T]
    joined = torch.cat([norm(embedded_TD, "enorm"), norm(hidden_TD, "hnorm")], dim=-1)
    entering = (joined @ load(f"{own}eh_proj.weight").T)[None]
    positions = torch.arange(len(ids_T))[None]
    leaving = causal.model.layers[2](
        entering,
        attention_mask=torch.full((len(ids_T), len(ids_T)), -torch.inf).triu(1)[None, None],
        position_ids=positions,
        position_embeddings=causal.model.rotary_emb(entering, positions),
    )
    return norm(leaving[0], "shared_head.norm") @ load("lm_head.weight").T


def test_mtp_tensors_are_the_checkpoints(with_mtp: Checkpoint) -> None:
    weights = mtp_weights(with_mtp)
    assert len(weights) == 22
    for name, weight in weights.items():
        assert torch.equal(weight.values(), with_mtp.load(name).float()), name


def test_copies_in_an_mtp_layer_that_differ_are_kept(with_mtp: Checkpoint) -> None:
    copy = "model.layers.3.shared_head.head.weight"
    assert copy not in mtp_weights(with_mtp)
    tensors = {name: with_mtp.load(name).clone() for name in with_mtp.names()}
    tensors[copy][0, 0] += 1
    rewrite_tensors(with_mtp.path, tensors)
    assert copy in mtp_weights(open_checkpoint(with_mtp.path))


def test_no_mtp_layer_to_keep(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_deepseek_v3(tmp_path / "model", **LIKE_R1))
    assert checkpoint.dimensions.n_mtp_layers == 1, "the config promises one all the same"
    assert mtp_weights(checkpoint) == {}


def test_the_header_of_r1() -> None:
    """Values of R1's config.json in the keys that llama.cpp's converter writes for it."""
    found = model_entries(
        "deepseek2",
        R1.dimensions,
        ModelIdentity(id=R1.id),
        n_parameters=R1.n_parameters,
        file_type=LlamaFileType.MOSTLY_Q4_K_M,
        quantized_by="test",
    )
    values = {entry.key: entry.value for entry in found}
    assert values["general.size_label"] == "256x20B"
    ours = {
        key.removeprefix("deepseek2."): value
        for key, value in values.items()
        if key.startswith("deepseek2.")
    }
    assert ours == {
        "vocab_size": 129280,
        "context_length": 163840,
        "embedding_length": 7168,
        "block_count": 61,
        "feed_forward_length": 18432,
        "attention.head_count": 128,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.q_lora_rank": 1536,
        "attention.kv_lora_rank": 512,
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "leading_dense_block_count": 3,
        "expert_feed_forward_length": 2048,
        "expert_count": 256,
        "expert_used_count": 8,
        "expert_shared_count": 1,
        "expert_group_count": 8,
        "expert_group_used_count": 4,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "rope.dimension_count": 64,
        "rope.freq_base": 10000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 40.0,
        "rope.scaling.original_context_length": 4096,
        "rope.scaling.attn_factor": 1.0,
        "rope.scaling.yarn_log_multiplier": pytest.approx(0.1),
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
    }


@pytest.mark.parametrize(
    ("changes", "latent", "problem"),
    [
        ({"rms_norm_eps": 1e-5}, {}, "rms_norm_eps is 1e-05"),
        ({}, {"rope_interleave": False}, "rope_interleave"),
        ({}, {"q_lora_rank": None}, "q_lora_rank is null"),
        ({"n_layers": 27}, {}, "27 layers and q_lora_rank"),
        ({"moe": None}, {}, "n_routed_experts"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    changes: dict[str, object], latent: dict[str, object], problem: str
) -> None:
    assert R1.dimensions.mla is not None
    check_deepseek2(R1.dimensions)
    mla = dataclasses.replace(R1.dimensions.mla, **latent)
    with pytest.raises(CheckpointError, match=problem):
        check_deepseek2(dataclasses.replace(R1.dimensions, mla=mla, **changes))


@pytest.mark.parametrize(
    ("changes", "problem"), [({"kind": "linear"}, "linear"), ({"factor": 1.0}, "factor")]
)
def test_rope_scaling_that_is_refused(changes: dict[str, object], problem: str) -> None:
    assert R1.dimensions.rope_scaling is not None
    scaling = dataclasses.replace(R1.dimensions.rope_scaling, **changes)
    with pytest.raises(CheckpointError, match=problem):
        check_deepseek2(dataclasses.replace(R1.dimensions, rope_scaling=scaling))
