"""DeepSeek-V3's router: which experts a token goes to, and how much of each it gets.

    score  = sigmoid(x W^T)                                  per token and expert
    choice = score + bias                                    the bias decides, it does not weigh
    groups : those with the largest sums of their two best choices
    experts: those with the best choices inside these groups
    weight = routed_scale * score / sum of the chosen scores

All of it in float32, also in a float16 graph, as transformers does: a choice near a tie would flip
otherwise. The result is dense, one column per expert, because every form of the experts can use
that: 1 and 0 for the choice, 0 where an expert was not chosen for the weight.

Source: DeepSeek-V3 technical report (arXiv:2412.19437), section 2.1.2; transformers,
DeepseekV3TopkRouter.

Shape legend: T tokens, H hidden, E experts, G groups of experts.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tightfit.calib.dimensions import MoeDimensions
from tightfit.export.onnx.graph import GraphBuilder
from tightfit.export.onnx.linear import float_value
from tightfit.export.onnx.options import OnnxOptions, Precision
from tightfit.export.weights import FloatWeight, Weights

_BEST_PER_GROUP = 2
"""Choices whose sum is a group's score."""
_TINY = 1e-20
"""Keeps the sum of the chosen scores from being zero, as in transformers."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Routing:
    """What the router decided, float32."""

    chosen_TE: ir.Value
    """1 for a token's experts, 0 for the others."""
    weight_TE: ir.Value
    """Factor on an expert's output, 0 for those not chosen."""


def route(
    graph: GraphBuilder, name: str, x_TH: ir.Value, weights: Weights, moe: MoeDimensions
) -> Routing:
    """Route float32 tokens by the router at module path `name` (`model.layers.N.mlp.gate`)."""
    router_EH = _float32(graph, weights, f"{name}.weight")
    bias_E = _float32(graph, weights, f"{name}.e_score_correction_bias")
    router_HE = graph.op("Transpose", [router_EH], name=f"{name}.transposed", perm=[1, 0])
    logits_TE = graph.op("MatMul", [x_TH, router_HE], name=f"{name}.logits")
    score_TE = graph.op("Sigmoid", [logits_TE], name=f"{name}.scores")
    choice_TE = graph.op("Add", [score_TE, bias_E], name=f"{name}.choices")
    if moe.n_groups_per_token < moe.n_groups:
        choice_TE = _within_best_groups(graph, choice_TE, moe, name)
    chosen_TE = _best(graph, choice_TE, moe.n_experts_per_token, moe.n_routed_experts, name)
    weight_TE = graph.op("Mul", [score_TE, chosen_TE], name=f"{name}.chosen_scores")
    if moe.normalized:
        sum_T1 = graph.op(
            "ReduceSum", [weight_TE, _ints(graph, -1)], name=f"{name}.sum", keepdims=1
        )
        tiny = _floats(graph, "moe.tiny", _TINY)
        sum_T1 = graph.op("Add", [sum_T1, tiny], name=f"{name}.positive_sum")
        weight_TE = graph.op("Div", [weight_TE, sum_T1], name=f"{name}.normalized")
    scale = _floats(graph, "moe.routed_scale", moe.routed_scale)
    weight_TE = graph.op("Mul", [weight_TE, scale], name=f"{name}.weights")
    return Routing(chosen_TE=chosen_TE, weight_TE=weight_TE)


def _within_best_groups(
    graph: GraphBuilder, choice_TE: ir.Value, moe: MoeDimensions, name: str
) -> ir.Value:
    """Choices, minus infinity outside a token's groups."""
    per_group = moe.n_routed_experts // moe.n_groups
    grouped = graph.op(
        "Reshape", [choice_TE, _ints(graph, -1, moe.n_groups, per_group)], name=f"{name}.grouped"
    )
    best, _ = graph.ops(
        "TopK",
        [grouped, _ints(graph, _BEST_PER_GROUP)],
        (f"{name}.group_best", f"{name}.group_best_index"),
        name=f"{name}.group_best",
        axis=-1,
    )
    group_TG = graph.op(
        "ReduceSum", [best, _ints(graph, -1)], name=f"{name}.group_scores", keepdims=0
    )
    kept_TG = _best(graph, group_TG, moe.n_groups_per_token, moe.n_groups, f"{name}.groups")
    kept = graph.op("Unsqueeze", [kept_TG, _ints(graph, -1)], name=f"{name}.groups.kept")
    kept = graph.op("Cast", [kept], name=f"{name}.groups.mask", to=int(ir.DataType.BOOL))
    never = _floats(graph, "moe.never", -np.inf)
    allowed = graph.op("Where", [kept, grouped, never], name=f"{name}.allowed")
    return graph.op(
        "Reshape", [allowed, _ints(graph, -1, moe.n_routed_experts)], name=f"{name}.allowed_choices"
    )


def _best(graph: GraphBuilder, value_TN: ir.Value, k: int, n: int, name: str) -> ir.Value:
    """1 at the `k` largest of `n` values of each row, 0 elsewhere, float32."""
    _, index_Tk = graph.ops(
        "TopK",
        [value_TN, _ints(graph, k)],
        (f"{name}.best", f"{name}.best_index"),
        name=f"{name}.best",
        axis=-1,
    )
    off_on = _floats(graph, "moe.off_on", 0, 1)
    hot_TkN = graph.op("OneHot", [index_Tk, _ints(graph, n), off_on], name=f"{name}.one_hot")
    return graph.op("ReduceSum", [hot_TkN, _ints(graph, 1)], name=f"{name}.chosen", keepdims=0)


def _float32(graph: GraphBuilder, weights: Weights, name: str) -> ir.Value:
    weight = weights[name]
    assert isinstance(weight, FloatWeight), f"{name}: a router is never quantized"
    return float_value(graph, name, weight, OnnxOptions(precision=Precision.FLOAT32))


def _floats(graph: GraphBuilder, name: str, *values: float) -> ir.Value:
    return graph.constant(name, np.array(values, dtype=np.float32))


def _ints(graph: GraphBuilder, *values: int) -> ir.Value:
    return graph.constant("ints." + ".".join(map(str, values)), np.array(values, dtype=np.int64))
