"""What is refused by name is what the builder refuses, and nothing else."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from support.deepseek_v3 import deepseek_v3_weights, make_deepseek_v3

from tightfit.calib.architecture import DEEPSEEK_V3, QWEN2, Architecture
from tightfit.calib.config import read_config
from tightfit.calib.dimensions import ModelDimensions, dimensions_of
from tightfit.calib.models import find_model
from tightfit.calib.shapes import tensor_shapes
from tightfit.errors import QuantizationError
from tightfit.export.onnx.decoder import build_graph
from tightfit.export.onnx.grids import check_linear, check_storage
from tightfit.export.onnx.options import Dialect, OnnxOptions
from tightfit.export.weights import FloatWeight, QuantizedWeight, Weight
from tightfit.quant.grids.integer import IntegerGrid
from tightfit.quant.registry import GRIDS, get_grid

GRAPHS = [OnnxOptions(dialect=dialect) for dialect in Dialect]


class Model(NamedTuple):
    """All that a graph depends on but for the weights themselves."""

    dimensions: ModelDimensions
    architecture: Architecture
    shapes: Mapping[str, tuple[int, ...]]


def qwen2(*, tied: bool) -> Model:
    known = find_model("r1-distill-qwen-1.5b")
    assert known
    dimensions = replace(known.dimensions, n_layers=2, tie_word_embeddings=tied)
    return Model(dimensions, QWEN2, tensor_shapes(QWEN2, dimensions))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Model]:
    folder = tmp_path_factory.mktemp("grids") / "checkpoint"
    config = {"num_hidden_layers": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2}
    path = make_deepseek_v3(folder, **config)
    shapes = {name: w.shape for name, w in deepseek_v3_weights(path, "float32").items()}
    deepseek = Model(dimensions_of(read_config(path)), DEEPSEEK_V3, shapes)
    return {"qwen2": qwen2(tied=False), "tied": qwen2(tied=True), "deepseek": deepseek}


def storage_of(model: Model, role: str, grid: str) -> dict[str, str]:
    """One grid on the matrices whose names have `role` in them, bfloat16 elsewhere."""
    return {
        name: grid if role in name and len(shape) == 2 and "mlp.gate." not in name else "BF16"
        for name, shape in model.shapes.items()
    }


def refusal(
    model: Model, storage: Mapping[str, str], options: OnnxOptions, *, act_order: bool = False
) -> tuple[str | None, str | None]:
    """What the check says, and what the builder says when it is too late."""
    dimensions, architecture, shapes = model

    def weight(name: str, shape: tuple[int, ...]) -> Weight:
        if storage[name] not in GRIDS:
            return FloatWeight(shape=shape, dtype=torch.bfloat16, load=pytest.fail)
        rows, columns = shape
        grid = get_grid(storage[name])
        order_I = torch.arange(columns, dtype=torch.int32).flip(0) // (grid.span or columns)
        regrouped = act_order and isinstance(grid, IntegerGrid) and name != architecture.embedding
        return QuantizedWeight(
            shape=(rows, columns),
            grid=grid.name,
            load=pytest.fail,
            group_index_I=order_I if regrouped else None,
        )

    weights = {name: weight(name, shape) for name, shape in shapes.items()}
    said: list[str | None] = []
    for attempt in (
        lambda: check_storage(storage, architecture, options, act_order=act_order),
        lambda: build_graph(dimensions, architecture, weights, options),
    ):
        try:
            attempt()
        except QuantizationError as error:
            said.append(error.problem)
        else:
            said.append(None)
    return said[0], said[1]


@pytest.mark.parametrize("options", GRAPHS, ids=lambda options: options.dialect.value)
@pytest.mark.parametrize(
    ("model", "role"),
    [
        ("qwen2", "_proj"),
        ("qwen2", "embed_tokens"),
        ("qwen2", "lm_head"),
        ("tied", "embed_tokens"),
        ("deepseek", "kv_a_proj"),
        ("deepseek", "kv_b_proj"),
        ("deepseek", ".experts."),
    ],
)
def test_the_check_says_what_the_builder_says(
    models: Mapping[str, Model], model: str, role: str, options: OnnxOptions
) -> None:
    outcomes = set()
    for grid in GRIDS:
        storage = storage_of(models[model], role, grid)
        early, late = refusal(models[model], storage, options)
        assert early == late, grid
        outcomes.add(early is None)
    assert outcomes == {True, False}


@pytest.mark.parametrize("options", GRAPHS, ids=lambda options: options.dialect.value)
def test_act_order_is_refused_where_qmoe_would_hold_it(
    models: Mapping[str, Model], options: OnnxOptions
) -> None:
    model = models["deepseek"]
    for grid, held in (("int4-g32-sym", True), ("int8-g32-sym", False)):
        early, late = refusal(model, storage_of(model, "_proj", grid), options, act_order=True)
        assert (early is None) == (late is None)
        assert (early is not None) == (held and options.dialect is Dialect.ORT)
    # Experts that are not all alike are computed one by one.
    mixed = storage_of(model, "_proj", "int4-g32-sym")
    mixed["model.layers.1.mlp.experts.3.down_proj.weight"] = "int8-g32-sym"
    assert refusal(model, mixed, options, act_order=True) == (None, None)


@pytest.mark.parametrize(
    ("grid", "ort", "standard"),
    [
        ("int2-g64-sym", True, False),
        ("int3-g128-sym", False, False),
        ("int4-g128-asym", True, True),
        ("int4-channel-sym", True, True),
        ("int2-channel-sym", False, False),
        ("int5-g32-sym", False, False),
        ("int8-channel-asym", True, True),
        ("fp8-e4m3-block128", True, True),
        ("Q4_K", False, False),
        ("IQ4_XS", False, False),
        ("Q8_0", False, False),
    ],
)
def test_grids_that_cannot_be_held_are_refused_by_name(
    grid: str, ort: bool, standard: bool
) -> None:
    for dialect, held in ((Dialect.ORT, ort), (Dialect.STANDARD, standard)):
        if held:
            check_linear(grid, dialect)
            continue
        with pytest.raises(QuantizationError, match=grid) as caught:
            check_linear(grid, dialect)
        assert "--scheme gptq-int4-g128" in caught.value.hint
