"""DeepSeek-V3 in onnxruntime against transformers: latent attention, router, experts, R1's size."""

import time
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from support.deepseek_v3 import (
    deepseek_v3_reference,
    deepseek_v3_weights,
    make_deepseek_v3,
)
from support.onnx_models import check_model, relative_difference
from support.onnx_weights import floating
from torch import Tensor
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from tightfit.calib.architecture import DEEPSEEK_V3
from tightfit.calib.config import read_config
from tightfit.calib.dimensions import MoeDimensions, dimensions_of
from tightfit.calib.models import find_model
from tightfit.errors import QuantizationError
from tightfit.export.onnx.decoder import build_graph
from tightfit.export.onnx.graph import PAGE_BYTES, GraphBuilder, OnnxGraph
from tightfit.export.onnx.mla import in_wide_codes
from tightfit.export.onnx.options import Dialect, OnnxOptions, Precision
from tightfit.export.onnx.readback import read_weights
from tightfit.export.onnx.router import route
from tightfit.export.onnx.writer import write_onnx
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight, Weights
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor

BOUNDS = {Precision.FLOAT32: 1e-5, Precision.FLOAT16: 5e-3}
"""Largest difference over the largest logit. Ten times stricter than promised in float32; in
float16 a flipped expert would exceed the bound, and seed 0 has no token so near to a tie."""
ALL_OPTIONS = [OnnxOptions(dialect=dialect, precision=p) for dialect in Dialect for p in Precision]
ORT = [option for option in ALL_OPTIONS if option.dialect is Dialect.ORT]
STANDARD = [option for option in ALL_OPTIONS if option.dialect is Dialect.STANDARD]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_deepseek_v3(tmp_path_factory.mktemp("deepseek_v3") / "checkpoint")


def graph_of(checkpoint: Path, weights: Weights, options: OnnxOptions) -> OnnxGraph:
    return build_graph(dimensions_of(read_config(checkpoint)), DEEPSEEK_V3, weights, options)


def write(folder: Path, graph: OnnxGraph) -> Path:
    path = write_onnx(folder / "model.onnx", graph, overwrite=True)[0]
    check_model(path)
    return path


def check_agreement(
    folder: Path, checkpoint: Path, weights: Weights, options: list[OnnxOptions]
) -> None:
    reference = deepseek_v3_reference(checkpoint, weights, folder / "reference")
    for option in options:
        path = write(folder, graph_of(checkpoint, weights, option))
        difference = relative_difference(path, reference)
        assert difference < BOUNDS[option.precision], (option, difference)


def operators(graph: OnnxGraph) -> list[str]:
    return [node.op_type for node in graph.model.graph]


def test_int4_agrees_with_transformers(checkpoint: Path, tmp_path: Path) -> None:
    """Prefill of a batch of unequal lengths and 32 decode steps, experts in QMoE and one by one."""
    weights = deepseek_v3_weights(checkpoint, "int4-g32-sym")
    check_agreement(tmp_path, checkpoint, weights, ALL_OPTIONS)
    n_moe_layers = 2
    assert operators(graph_of(checkpoint, weights, ORT[0])).count("QMoE") == n_moe_layers
    assert "QMoE" not in operators(graph_of(checkpoint, weights, STANDARD[0]))


@pytest.mark.parametrize(
    ("linears", "experts", "options"),
    [
        ("int4-g32-asym", "int4-g32-asym", ORT),
        ("int8-g32-asym", "int8-g64-sym", ORT),
        ("int2-g32-sym", "int2-g32-asym", ORT[:1]),
        ("float32", "fp8-e4m3-channel", [ORT[0], STANDARD[0]]),
    ],
)
def test_other_grids_agree(
    checkpoint: Path, tmp_path: Path, linears: str, experts: str, options: list[OnnxOptions]
) -> None:
    weights = deepseek_v3_weights(checkpoint, linears, experts=experts)
    check_agreement(tmp_path, checkpoint, weights, options)
    assert ("QMoE" in operators(graph_of(checkpoint, weights, ORT[0]))) == (
        experts == "int4-g32-asym"
    )


@pytest.mark.parametrize(
    "config",
    [
        {"q_lora_rank": None, "rope_interleave": False, "norm_topk_prob": False},
        {"n_group": 1, "topk_group": 1, "attention_bias": True, "n_shared_experts": 2},
    ],
    ids=["no-query-latent", "no-groups"],
)
def test_variants_of_the_architecture_agree(tmp_path: Path, config: dict[str, object]) -> None:
    """With plain rope: `mscale_all_dim` must act under yarn only."""
    path = make_deepseek_v3(tmp_path / "checkpoint", yarn=False, **config)
    weights = deepseek_v3_weights(path, "int4-g32-sym")
    check_agreement(tmp_path, path, weights, [ORT[0], STANDARD[0]])


def test_static_float8_of_latents_agrees(checkpoint: Path, tmp_path: Path) -> None:
    """kv_b_proj alone reads rounded latents: a code that flips near a tie stays in one place."""
    weights = dict(deepseek_v3_weights(checkpoint, "float32"))
    rounded = deepseek_v3_weights(checkpoint, "fp8-e4m3-tensor")
    name = "model.layers.1.self_attn.kv_b_proj"
    weight = rounded[f"{name}.weight"]
    assert isinstance(weight, QuantizedWeight)
    weights[f"{name}.weight"] = replace(weight, input_scale=0.01)
    check_agreement(tmp_path, checkpoint, weights, [ORT[0], STANDARD[0]])


def test_act_order_outside_qmoe_agrees(checkpoint: Path, tmp_path: Path) -> None:
    """Also of kv_b_proj, whose columns are the latents."""
    weights = deepseek_v3_weights(checkpoint, "int4-g32-asym", act_order=True)
    check_agreement(tmp_path, checkpoint, weights, [STANDARD[0]])
    # In `ort`, experts of different grids are computed one by one.
    other = deepseek_v3_weights(checkpoint, "int8-g32-sym", act_order=True)
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    mixed = weights | {name: other[name]} | {n: w for n, w in other.items() if ".2.mlp." in n}
    check_agreement(tmp_path / "mixed", checkpoint, mixed, [ORT[0]])


def test_qmoe_refuses_act_order(checkpoint: Path) -> None:
    weights = deepseek_v3_weights(checkpoint, "int4-g32-sym", act_order=True)
    with pytest.raises(QuantizationError, match=r"layers\.1\..*act-order"):
        graph_of(checkpoint, weights, ORT[0])


def test_qmoe_refuses_act_order_of_a_late_expert(checkpoint: Path, tmp_path: Path) -> None:
    weights = deepseek_v3_weights(checkpoint, "int4-g32-sym")
    name = "model.layers.2.mlp.experts.15.up_proj.weight"
    weights[name] = deepseek_v3_weights(checkpoint, "int4-g32-sym", act_order=True)[name]
    with pytest.raises(QuantizationError, match=r"experts\.15\.up_proj"):
        write(tmp_path, graph_of(checkpoint, weights, ORT[0]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "linears"),
    [(ORT[0], "int4-g32-asym"), (ORT[1], "int8-g32-sym"), (STANDARD[1], "int4-g32-sym")],
)
def test_every_weight_is_read_back_exactly(
    checkpoint: Path, tmp_path: Path, option: OnnxOptions, linears: str
) -> None:
    weights = deepseek_v3_weights(checkpoint, linears)
    read = {
        weight.name: weight.values()
        for weight in read_weights(write(tmp_path, graph_of(checkpoint, weights, option)))
    }
    assert read.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(read[name], weight.values().numpy(), err_msg=name)


def test_a_multi_token_prediction_layer_is_left_out(checkpoint: Path) -> None:
    weights = deepseek_v3_weights(checkpoint, "int4-g32-sym")
    extra = {
        name.replace("layers.2.", "layers.3."): weight
        for name, weight in weights.items()
        if "layers.2." in name
    }
    names = [tensor.name for _, tensor in graph_of(checkpoint, weights | extra, ORT[0]).data]
    assert any("layers.2." in name for name in names)
    assert not any("layers.3." in name for name in names)


def test_two_bit_codes_keep_their_numbers_in_four(checkpoint: Path) -> None:
    for grid in ("int2-g32-sym", "int2-g32-asym"):
        weight = deepseek_v3_weights(checkpoint, grid)["model.layers.0.self_attn.kv_b_proj.weight"]
        wide = in_wide_codes(weight)
        assert wide.grid == grid.replace("int2", "int4")
        assert torch.equal(wide.values(), weight.values())


@pytest.mark.parametrize(
    ("n_groups", "n_groups_per_token", "normalized"), [(8, 4, True), (4, 1, False), (1, 1, True)]
)
def test_router_chooses_and_weighs_as_transformers(
    n_groups: int, n_groups_per_token: int, normalized: bool
) -> None:
    """A bias as large as the scores, so that choosing by the wrong one of them shows."""
    n_experts, hidden, k = 64, 48, 6
    config = DeepseekV3Config(
        hidden_size=hidden,
        n_routed_experts=n_experts,
        num_experts_per_tok=k,
        n_group=n_groups,
        topk_group=n_groups_per_token,
        norm_topk_prob=normalized,
    )
    moe = MoeDimensions(
        n_routed_experts=n_experts,
        n_shared_experts=0,
        n_experts_per_token=k,
        expert_intermediate_size=1,
        n_dense_layers=0,
        n_groups=n_groups,
        n_groups_per_token=n_groups_per_token,
        routed_scale=2.5,
        normalized=normalized,
    )
    weight = floating((n_experts, hidden), torch.float32).load() / 4
    bias = floating((n_experts,), torch.float32, seed=1).load() / 2
    router = DeepseekV3TopkRouter(config)
    router.load_state_dict({"weight": weight, "e_score_correction_bias": bias})
    x = floating((500, hidden), torch.float32, seed=2).load()
    with torch.inference_mode():
        _, expected_weight, expected_index = router(x)
    nothing = torch.zeros(len(x), n_experts)
    chosen, weights = run_router(moe, weight, bias, x)
    np.testing.assert_array_equal(chosen, nothing.scatter(1, expected_index, 1.0))
    expected = nothing.scatter(1, expected_index, expected_weight)
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)


def run_router(
    moe: MoeDimensions, weight: Tensor, bias: Tensor, x: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Choice and weights of a graph that is only a router, its tensors inside the model."""
    graph = GraphBuilder("router", data_file="router.data")
    tokens = graph.input("x", ir.DataType.FLOAT, ("tokens", x.shape[1]))
    tensors = {"gate.weight": weight, "gate.e_score_correction_bias": bias}
    stored = {
        name: FloatWeight(shape=tuple(value.shape), dtype=value.dtype, load=value.clone)
        for name, value in tensors.items()
    }
    routing = route(graph, "gate", tokens, stored, moe)
    shape = (ir.DataType.FLOAT, ("tokens", moe.n_routed_experts))
    built = graph.finish([(routing.chosen_TE, *shape), (routing.weight_TE, *shape)], producer="t")
    for name, value in tensors.items():
        built.model.graph.initializers[name].const_value = ir.tensor(value, name=name)
    model = ir.to_proto(built.model).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    chosen, weights = session.run(None, {"x": x.numpy()})
    return chosen, weights


def r1_weights(grid: str) -> Weights:
    """R1's tensors by name and shape, as DeepSeek's own index lists them; none takes memory."""
    hidden, wide, expert, heads, q_rank, kv_rank = 7168, 18432, 2048, 128, 1536, 512
    weights: dict[str, Weight] = {}

    def matrix(name: str, n_rows: int, n_columns: int) -> None:
        load = partial(empty_matrix, grid, n_rows, n_columns)
        weights[f"{name}.weight"] = QuantizedWeight(shape=(n_rows, n_columns), grid=grid, load=load)

    def plain(name: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> None:
        load = partial(torch.zeros((), dtype=dtype).expand, shape)
        weights[name] = FloatWeight(shape=shape, dtype=dtype, load=load)

    plain("model.embed_tokens.weight", 129280, hidden)
    for layer in range(62):
        attention, mlp = (f"model.layers.{layer}.{part}" for part in ("self_attn", "mlp"))
        plain(f"model.layers.{layer}.input_layernorm.weight", hidden)
        matrix(f"{attention}.q_a_proj", q_rank, hidden)
        plain(f"{attention}.q_a_layernorm.weight", q_rank)
        matrix(f"{attention}.q_b_proj", heads * 192, q_rank)
        matrix(f"{attention}.kv_a_proj_with_mqa", kv_rank + 64, hidden)
        plain(f"{attention}.kv_a_layernorm.weight", kv_rank)
        matrix(f"{attention}.kv_b_proj", heads * 256, kv_rank)
        matrix(f"{attention}.o_proj", hidden, heads * 128)
        plain(f"model.layers.{layer}.post_attention_layernorm.weight", hidden)
        gated = [(mlp, wide)]
        if layer >= 3:
            plain(f"{mlp}.gate.weight", 256, hidden)
            plain(f"{mlp}.gate.e_score_correction_bias", 256, dtype=torch.float32)
            gated = [(f"{mlp}.shared_experts", expert)]
            gated += [(f"{mlp}.experts.{index}", expert) for index in range(256)]
        for path, width in gated:
            matrix(f"{path}.gate_proj", width, hidden)
            matrix(f"{path}.up_proj", width, hidden)
            matrix(f"{path}.down_proj", hidden, width)
    plain("model.norm.weight", hidden)
    plain("lm_head.weight", 129280, hidden)
    return weights


def empty_matrix(grid: str, n_rows: int, n_columns: int) -> QuantizedTensor:
    return QuantizedTensor(
        grid=grid,
        shape=(n_rows, n_columns),
        codes_OI=torch.zeros((), dtype=torch.uint8).expand(n_rows, n_columns),
        params={"scale": torch.zeros((), dtype=torch.float16).expand(n_rows, n_columns // 128)},
    )


def test_the_graph_of_r1_is_small_and_its_file_as_large_as_its_weights() -> None:
    """The real sizes, nothing loaded but for the question whether there is an act-order."""
    known = find_model("r1")
    assert known is not None
    weights = r1_weights("int4-g128-sym")
    start_s = time.process_time()
    graph = build_graph(
        known.dimensions, DEEPSEEK_V3, weights, OnnxOptions(precision=Precision.FLOAT16)
    )
    model = ir.to_proto(graph.model)
    assert time.process_time() - start_s < 10.0
    found = operators(graph)
    assert found.count("QMoE") == found.count("TopK") / 3 == 58
    assert found.count("Attention") == 61
    assert len(found) < 5000
    assert model.ByteSize() < 5_000_000

    inside = {name: weight for name, weight in weights.items() if ".layers.61." not in name}
    expected_bytes = sum(
        prod(weight.shape) * 2
        if isinstance(weight, FloatWeight)
        else prod(weight.shape) * get_grid(weight.grid).bits_per_weight(weight.shape) / 8
        for weight in inside.values()
    )
    # The corrections are float32, and tensors begin at round offsets.
    assert 0 <= graph.data_bytes - expected_bytes < PAGE_BYTES * len(graph.data)
    experts = sum(tensor.n_bytes for _, tensor in graph.data if ".mlp.experts." in tensor.name)
    assert experts == 58 * 256 * 3 * 7168 * 2048 * (4 + 16 / 128) / 8
