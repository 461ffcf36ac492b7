"""DeepSeek-V3's mixture of experts: one shared MLP for all tokens, and a few of many by a router.

    y = shared(x) + sum over the chosen experts e of  weight_e * down_e( silu(gate_e x) * (up_e x) )

The routed sum has three forms, all of which onnxruntime's CPU runs:

    QMoE      (`qmoe`) one node per layer; dialect `ort`, experts of a layer all on one grid that
              the operator holds exactly.
    dispatch  dialect `ort`, all other grids: each expert computes only the tokens that chose it,
              found by NonZero. 15 nodes per expert (227,000 in R1), the work of QMoE.
    dense     dialect `standard`: every expert computes every token, times 0 where it was not
              chosen. It costs all experts instead of a token's (256 instead of 8 in R1, 32 times
              the work), but no shape in it depends on data and every operator is one that
              TensorRT parses.

Source: DeepSeek-V3 technical report (arXiv:2412.19437), section 2.1.2; transformers, DeepseekV3MoE.

Shape legend: T tokens, H hidden, E experts, n tokens of one expert.
"""

import numpy as np
import onnx_ir as ir

from tightfit.calib.dimensions import ModelDimensions
from tightfit.export.onnx.graph import GraphBuilder, typed
from tightfit.export.onnx.mlp import gated_mlp
from tightfit.export.onnx.options import Dialect, OnnxOptions, Precision
from tightfit.export.onnx.qmoe import experts_grid, qmoe
from tightfit.export.onnx.router import Routing, route
from tightfit.export.weights import Weights


def mixture_of_experts(
    graph: GraphBuilder,
    name: str,
    x_BSH: ir.Value,
    weights: Weights,
    dimensions: ModelDimensions,
    options: OnnxOptions,
) -> ir.Value:
    """The experts at module path `name` (`model.layers.N.mlp`), of the shape of their input.

    Raises `QuantizationError` for a grid that the dialect cannot hold, and for act-order where QMoE
    would have to hold it.
    """
    moe = dimensions.moe
    assert moe is not None
    tokens = graph.constant("moe.tokens", np.array([-1, dimensions.hidden_size], dtype=np.int64))
    x_TH = graph.op("Reshape", [x_BSH, tokens], name=f"{name}.tokens")
    float_TH = _float32(graph, f"{name}.float_tokens", x_TH, options)
    routing = route(graph, f"{name}.gate", float_TH, weights, moe)
    experts = f"{name}.experts"
    if options.dialect is Dialect.STANDARD:
        y_TH = _dense(graph, experts, x_TH, routing, weights, moe.n_routed_experts, options)
    elif experts_grid(weights, experts, moe.n_routed_experts) is None:
        y_TH = _dispatched(graph, experts, x_TH, routing, weights, dimensions, options)
    else:
        y_TH = qmoe(graph, experts, x_TH, routing, weights, moe, options.precision)
    shape = graph.op("Shape", [x_BSH], name=f"{name}.shape")
    y_BSH = graph.op("Reshape", [y_TH, shape], name=f"{experts}.by_sequence")
    if not moe.n_shared_experts:
        return y_BSH
    shared_BSH = gated_mlp(graph, f"{name}.shared_experts", x_BSH, weights, options)
    return graph.op("Add", [y_BSH, shared_BSH], name=name)


def _dense(
    graph: GraphBuilder,
    name: str,
    x_TH: ir.Value,
    routing: Routing,
    weights: Weights,
    n_experts: int,
    options: OnnxOptions,
) -> ir.Value:
    """Every expert computes every token."""
    weight_TE = routing.weight_TE
    if options.precision is not Precision.FLOAT32:
        to = int(options.precision.data_type)
        weight_TE = graph.op("Cast", [weight_TE], name=f"{name}.weights", to=to)
    weights_T1 = graph.ops(
        "Split",
        [weight_TE],
        [f"{name}.{expert}.router_weight" for expert in range(n_experts)],
        name=f"{name}.split",
        axis=1,
        num_outputs=n_experts,
    )
    # A chain, not one Sum: an expert's output is freed as soon as it is added.
    sum_TH: ir.Value | None = None
    for expert, weight_T1 in enumerate(weights_T1):
        path = f"{name}.{expert}"
        y_TH = gated_mlp(graph, path, x_TH, weights, options)
        y_TH = graph.op("Mul", [y_TH, weight_T1], name=f"{path}.weighted")
        sum_TH = y_TH if sum_TH is None else graph.op("Add", [sum_TH, y_TH], name=f"{path}.sum")
    assert sum_TH is not None
    return sum_TH


def _dispatched(
    graph: GraphBuilder,
    name: str,
    x_TH: ir.Value,
    routing: Routing,
    weights: Weights,
    dimensions: ModelDimensions,
    options: OnnxOptions,
) -> ir.Value:
    """Each expert computes the tokens that chose it; one that nobody chose costs next to nothing.

    The sum is float32: onnxruntime's CPU cannot add float16 in place.
    """
    assert dimensions.moe is not None
    hidden_size = dimensions.hidden_size
    weight_ET = graph.op("Transpose", [routing.weight_TE], name=f"{name}.weights", perm=[1, 0])
    float_TH = _float32(graph, f"{name}.float_tokens", x_TH, options)
    sum_TH = graph.op("Sub", [float_TH, float_TH], name=f"{name}.zeros")
    last = graph.constant("moe.last_axis", np.array([-1], dtype=np.int64))
    for expert in range(dimensions.moe.n_routed_experts):
        path = f"{name}.{expert}"
        index = graph.constant(f"moe.expert.{expert}", np.array(expert, dtype=np.int64))
        weight_T = graph.op("Gather", [weight_ET, index], name=f"{path}.router_weights", axis=0)
        token_1n = graph.op("NonZero", [weight_T], name=f"{path}.chosen_by")
        token_n1 = graph.op("Transpose", [token_1n], name=f"{path}.tokens", perm=[1, 0])
        x_nH = graph.op("GatherND", [x_TH, token_n1], name=f"{path}.input")
        # A number of tokens of its own, which runtimes plan memory by.
        typed(x_nH, options.precision.data_type, (f"{path}.n_tokens", hidden_size))
        y_nH = gated_mlp(graph, path, x_nH, weights, options)
        y_nH = _float32(graph, f"{path}.float_output", y_nH, options)
        weight_n = graph.op("GatherND", [weight_T, token_n1], name=f"{path}.router_weight")
        weight_n1 = graph.op("Unsqueeze", [weight_n, last], name=f"{path}.factor")
        y_nH = graph.op("Mul", [y_nH, weight_n1], name=f"{path}.weighted")
        sum_TH = graph.op(
            "ScatterND", [sum_TH, token_n1, y_nH], name=f"{path}.sum", reduction="add"
        )
    if options.precision is Precision.FLOAT32:
        return sum_TH
    to = int(options.precision.data_type)
    return graph.op("Cast", [sum_TH], name=f"{name}.sum", to=to)


def _float32(graph: GraphBuilder, name: str, value: ir.Value, options: OnnxOptions) -> ir.Value:
    if options.precision is Precision.FLOAT32:
        return value
    return graph.op("Cast", [value], name=name, to=int(ir.DataType.FLOAT))
