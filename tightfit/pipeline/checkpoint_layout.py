"""Weights by the names of a Hugging Face checkpoint: experts one by one, `kv_b_proj` in one."""

from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.logical import (
    HEADS,
    STORED_HEADS,
    expert_name,
    is_heads,
    is_keys,
    is_stack,
    join_kv_b,
    stored_names,
)
from tightfit.export.weights import FloatWeight, LogicalWeights, StackedWeight, Weight


def stored_weights(weights: LogicalWeights, dimensions: ModelDimensions) -> dict[str, Weight]:
    """The same numbers by stored name; the parts of a `kv_b_proj` must be floats."""
    plain: dict[str, Weight] = {}
    for name, weight in weights.items():
        if is_stack(name):
            assert isinstance(weight, StackedWeight)
            plain |= {expert_name(name, n): part for n, part in enumerate(weight.parts)}
        elif is_heads(name):
            if is_keys(name):
                values = weights[name.removesuffix(HEADS[0]) + HEADS[1]]
                (stored,) = stored_names(name, dimensions)
                assert stored.endswith(STORED_HEADS)
                plain[stored] = _joined(weight, values)
        else:
            assert not isinstance(weight, StackedWeight)
            plain[name] = weight
    return plain


def _joined(keys: object, values: object) -> FloatWeight:
    assert isinstance(keys, FloatWeight)
    assert isinstance(values, FloatWeight)
    n_heads, latent, key_width = keys.shape
    return FloatWeight(
        shape=(n_heads * (key_width + values.shape[1]), latent),
        dtype=keys.dtype,
        load=lambda: join_kv_b(keys.load().to(keys.dtype), values.load().to(values.dtype)),
    )
