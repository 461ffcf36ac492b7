"""Experts one at a time: against transformers' experts, and what a pass holds in memory."""

import weakref

import pytest
import torch
from safetensors.torch import load_file
from support.deepseek_v3 import make_deepseek_v3
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.decoder import Decoder
from tightfit.calib.experts import expert_names, routing_of, run_expert

LAYER = 1
COLD = (3, 9)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("experts") / "model"
    return open_checkpoint(make_deepseek_v3(folder, cold_experts=COLD))


@pytest.fixture(scope="module")
def whole(checkpoint: Checkpoint) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.path,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    assert isinstance(model, PreTrainedModel)
    return model.eval()


@pytest.fixture
def decoder(checkpoint: Checkpoint) -> Decoder:
    return Decoder(checkpoint.path, checkpoint.architecture, torch.device("cpu"))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mixture(whole: PreTrainedModel) -> DeepseekV3MoE:
    module = whole.get_submodule(f"model.layers.{LAYER}.mlp")
    assert isinstance(module, DeepseekV3MoE)
    return module


def test_an_experts_names(checkpoint: Checkpoint) -> None:
    names = expert_names(checkpoint.architecture, LAYER, 5)
    assert names == tuple(
        f"model.layers.1.mlp.experts.5.{part}_proj.weight" for part in ("gate", "up", "down")
    )
    assert set(names) <= set(load_file(checkpoint.path / "model.safetensors"))


def test_one_expert_is_that_of_transformers(checkpoint: Checkpoint, whole: PreTrainedModel) -> None:
    x_TI = drawn(7, checkpoint.dimensions.hidden_size)
    everywhere_T1 = torch.full((7, 1), 5)
    with torch.no_grad():
        expected = mixture(whole).experts(x_TI, everywhere_T1, torch.ones(7, 1))
    matrices = map(checkpoint.load, expert_names(checkpoint.architecture, LAYER, 5))
    y_TI = run_expert(*(matrix.float() for matrix in matrices), x_TI)
    torch.testing.assert_close(y_TI, expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 1e-3


def test_the_trunk_lacks_the_routed_experts_and_notes_the_routing(
    checkpoint: Checkpoint, whole: PreTrainedModel, decoder: Decoder
) -> None:
    hidden_BTD = drawn(2, 12, checkpoint.dimensions.hidden_size)
    block = decoder.block(LAYER, decoder.load_block(LAYER, checkpoint.load))
    trunk_BTD = decoder.run_block(block, hidden_BTD)
    routing = routing_of(block)
    assert routing is not None
    assert routing.experts_TK.dtype == torch.int64
    assert routing.x_TI.dtype == routing.weights_TK.dtype == torch.float32
    read: list[Tensor] = []
    module = mixture(whole)
    hook = module.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    whole_BTD = pass_alone(whole, LAYER, hidden_BTD)
    hook.remove()
    torch.testing.assert_close(routing.x_TI, read[0].flatten(0, 1), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        _, weights_TK, experts_TK = module.gate(read[0])
        routed_TD = module.experts(read[0].flatten(0, 1), experts_TK, weights_TK)
    assert not set(COLD) & set(experts_TK.flatten().tolist())
    for ours, theirs in (
        (scattered(routing.experts_TK, routing.weights_TK), scattered(experts_TK, weights_TK)),
        (trunk_BTD + routed_TD.view_as(trunk_BTD), whole_BTD),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert routed_TD.std() > 1e-2


def scattered(experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """Weight of every expert for every token; which comes first among the chosen says nothing."""
    return torch.zeros(len(experts_TK), 16).scatter(1, experts_TK, weights_TK)


def pass_alone(whole: PreTrainedModel, layer: int, hidden_BTD: Tensor) -> Tensor:
    """A block of transformers' model with causal attention."""
    length = hidden_BTD.shape[1]
    positions = torch.arange(length)[None]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    rotary = whole.get_submodule("model.rotary_emb")
    with torch.no_grad():
        output = whole.get_submodule(f"model.layers.{layer}")(
            hidden_BTD,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=rotary(hidden_BTD, positions),
        )
    assert isinstance(output, Tensor)
    return output


def test_a_dense_block_routes_nothing(checkpoint: Checkpoint, decoder: Decoder) -> None:
    block = decoder.block(0, decoder.load_block(0, checkpoint.load))
    decoder.run_block(block, drawn(1, 4, checkpoint.dimensions.hidden_size))
    assert routing_of(block) is None


def test_a_pass_is_transformers_block(
    checkpoint: Checkpoint, whole: PreTrainedModel, decoder: Decoder
) -> None:
    states = [drawn(2, 9, 128), drawn(1, 1, 128, seed=1), drawn(1, 30, 128, seed=2)]
    for layer in range(decoder.n_blocks):
        passed = decoder.pass_block(layer, checkpoint.load, states)
        expected = [pass_alone(whole, layer, hidden_BTD) for hidden_BTD in states]
        for ours, theirs in zip(passed, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        states = passed


def test_a_token_does_not_depend_on_what_passes_beside_it(
    checkpoint: Checkpoint, decoder: Decoder
) -> None:
    """To the noise of matrix products, which differ with the number of rows."""
    alone, other = drawn(1, 9, 128), drawn(1, 40, 128, seed=1)
    (one,) = decoder.pass_block(LAYER, checkpoint.load, [alone])
    beside, _ = decoder.pass_block(LAYER, checkpoint.load, [alone, other])
    torch.testing.assert_close(beside, one, rtol=1e-5, atol=1e-6)


def test_one_expert_is_in_memory_at_a_time_and_only_visited_ones(
    checkpoint: Checkpoint, decoder: Decoder
) -> None:
    order: list[str] = []
    living: dict[str, weakref.ref[Tensor]] = {}

    def source(name: str) -> Tensor:
        if ".experts." in name:
            number = name.split(".experts.")[1].split(".")[0]
            held = {other for other, tensor in living.items() if tensor() is not None}
            assert all(f".experts.{number}." in other for other in held)
        order.append(name)
        tensor = checkpoint.load(name).float().clone()
        if ".experts." in name:
            living[name] = weakref.ref(tensor)
        return tensor

    hidden_BTD = drawn(1, 2, 128)
    decoder.pass_block(LAYER, source, [hidden_BTD])
    block = decoder.block(LAYER, decoder.load_block(LAYER, checkpoint.load))
    decoder.run_block(block, hidden_BTD)
    routing = routing_of(block)
    assert routing is not None
    visited = sorted(set(routing.experts_TK.flatten().tolist()))
    assert 4 <= len(visited) < 16 - len(COLD)
    loaded = [name for name in order if ".experts." in name]
    assert loaded == [
        name for number in visited for name in expert_names(checkpoint.architecture, LAYER, number)
    ]
    assert not any("*" in name for name in order)


def test_the_blocks_parameters_are_logical_and_without_experts(
    checkpoint: Checkpoint, decoder: Decoder
) -> None:
    parameters = decoder.load_block(LAYER, checkpoint.load)
    assert not any("experts." in name and "shared" not in name for name in parameters)
    assert parameters["self_attn.k_b_proj.weight"].shape == (4, 96, 32)
    assert parameters["self_attn.v_b_proj.weight"].shape == (4, 24, 96)
    assert all(tensor.dtype == torch.float32 for tensor in parameters.values())
    block = decoder.block(LAYER, parameters)
    kv_b = load_file(checkpoint.path / "model.safetensors")[
        f"model.layers.{LAYER}.self_attn.kv_b_proj.weight"
    ]
    assert block.get_parameter("self_attn.kv_b_proj.weight").equal(kv_b.float())
    bias = block.get_buffer("mlp.gate.e_score_correction_bias")
    assert bias.equal(parameters["mlp.gate.e_score_correction_bias"])
    assert bias[COLD[0]] == -100
