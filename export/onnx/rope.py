"""Rotary positions: the cosine and sine that rotate queries and keys, computed in the graph.

    angle(p, i) = p * f_i,    cos = a * cos(angle),    sin = a * sin(angle)

Only the frequencies f_i are stored, rounded from float64; angles are float32, as in transformers,
also in a float16 graph. A table of all positions would add 67 MB to a model with 131,072 of them.

    default  f_i = theta**(-2i/R)
    linear   f_i / s
    llama3   f_i where it turns at least `high_freq_factor` times in L tokens, f_i / s where at most
             `low_freq_factor` times, interpolated linearly in the number of turns between
    yarn     f_i / s and f_i mixed by a ramp over i between the dimensions that turn `beta_slow`
             and `beta_fast` times in L tokens; a is its attention factor
             (arXiv:2309.00071, sections 3.2 and 3.4)

with s = `factor`, L = `original_max_position_embeddings`; a = 1 but for yarn.

Shape legend: R rotated dimensions of a head, P positions (of any shape).
"""

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.rope import RopeScaling
from tightfit.export.onnx.graph import GraphBuilder
from tightfit.export.onnx.options import Precision

_SMALLEST_RAMP = 1e-3
"""Width of yarn's ramp where both of its ends are the same dimension, as in transformers."""


def rotary_width(dimensions: ModelDimensions) -> int:
    """Dimensions of a head that are rotated."""
    mla = dimensions.mla
    return dimensions.head_dim if mla is None else mla.qk_rope_head_dim


def inverse_frequencies(
    width: int, theta: float, scaling: RopeScaling | None
) -> NDArray[np.float64]:
    """Radians per token of each rotated pair (width / 2,)."""
    plain = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    kept = (
        _llama3_kept(plain, scaling)
        if scaling.kind == "llama3"
        else _yarn_kept(theta, width, scaling)
    )
    return plain * kept + plain / scaling.factor * (1.0 - kept)


def rotary_cos_sin(
    graph: GraphBuilder,
    positions_P: ir.Value,
    dimensions: ModelDimensions,
    precision: Precision,
    *,
    name: str,
) -> tuple[ir.Value, ir.Value]:
    """Cosine and sine (P, R/2) of float32 positions, in the graph's precision."""
    scaling = dimensions.rope_scaling
    frequencies = inverse_frequencies(rotary_width(dimensions), dimensions.rope_theta, scaling)
    frequency = graph.constant(f"{name}.frequencies", frequencies.astype(np.float32))
    last = graph.constant(f"{name}.last_axis", np.array([-1], dtype=np.int64))
    column = graph.op("Unsqueeze", [positions_P, last], name=f"{name}.positions")
    angle = graph.op("Mul", [column, frequency], name=f"{name}.angle")
    factor = 1.0 if scaling is None else scaling.yarn_attention_factor

    def finish(op_type: str) -> ir.Value:
        value = graph.op(op_type, [angle], name=f"{name}.{op_type.lower()}")
        if factor != 1.0:
            attention_factor = graph.constant(f"{name}.factor", np.array(factor, dtype=np.float32))
            value = graph.op("Mul", [value, attention_factor], name=f"{value.name}.scaled")
        if precision is not Precision.FLOAT32:
            value = graph.op(
                "Cast", [value], name=f"{value.name}.cast", to=int(precision.data_type)
            )
        return value

    return finish("Cos"), finish("Sin")


def _llama3_kept(plain: NDArray[np.float64], scaling: RopeScaling) -> NDArray[np.float64]:
    """1 where a frequency stays, 0 where it is divided by the factor."""
    assert scaling.original_max_position_embeddings is not None
    assert scaling.low_freq_factor is not None
    assert scaling.high_freq_factor is not None
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    return np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)


def _yarn_kept(theta: float, width: int, scaling: RopeScaling) -> NDArray[np.float64]:
    """1 where a frequency stays, 0 where it is divided by the factor."""
    original = scaling.original_max_position_embeddings
    assert original is not None

    def dimension(turns: float) -> float:
        """The pair that turns so often in the original context."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), width - 1)
    ramp = (np.arange(width // 2) - low) / (high - low or _SMALLEST_RAMP)
    return 1.0 - np.clip(ramp, 0.0, 1.0)
