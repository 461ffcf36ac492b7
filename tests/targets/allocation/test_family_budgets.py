"""Priors of the whole family with their real bytes: spent to 99 %, at once, at any budget."""

import time
from math import prod

import highspy  # noqa: F401  (the first allocation imports it, and would be timed with it)
import pytest
from gguf import GGMLQuantizationType

from tightfit.calib.architecture import architecture_of
from tightfit.calib.models import MODELS
from tightfit.calib.shapes import tensor_shapes
from tightfit.targets.allocation.grids import candidate_grids
from tightfit.targets.allocation.option import Option
from tightfit.targets.allocation.prior import prior_sensitivity
from tightfit.targets.allocation.solve import allocate
from tightfit.targets.schemes.ggml_types import tensor_bytes

BITS_PER_WEIGHT = (2.7, 3.1, 3.5, 4.0, 4.25, 4.5, 4.83, 5.0, 5.5, 6.0, 7.0, 8.0)


def gguf_options(name: str) -> dict[str, list[Option]]:
    dimensions = next(model.dimensions for model in MODELS.values() if model.name == name)
    architecture = architecture_of(dimensions.model_type)
    shapes = tensor_shapes(architecture, dimensions)
    return {
        tensor: [
            Option(
                stored_as=grid,
                n_bytes=tensor_bytes(GGMLQuantizationType[grid], shapes[tensor]),
                loss_nats=table[grid],
            )
            for grid in candidate_grids("gguf", shapes[tensor], lambda _grid: True)
        ]
        for tensor, table in prior_sensitivity(architecture, dimensions).losses.items()
    }


@pytest.mark.parametrize("name", [model.name for model in MODELS.values()])
def test_every_byte_counts(name: str) -> None:
    options = gguf_options(name)
    n_weights = sum(
        prod(shape)
        for model in MODELS.values()
        if model.name == name
        for tensor, shape in tensor_shapes(
            architecture_of(model.dimensions.model_type), model.dimensions
        ).items()
        if tensor in options
    )
    before = float("inf")
    for bits in BITS_PER_WEIGHT:
        budget_bytes = int(bits * n_weights / 8)
        start = time.process_time()
        found = allocate(options, budget_bytes)
        assert time.process_time() - start < 0.3
        assert 0.99 * budget_bytes <= found.n_bytes <= budget_bytes
        assert found.predicted_nats < before
        before = found.predicted_nats
