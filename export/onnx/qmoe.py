"""All routed experts of a layer in one node: onnxruntime's QMoE (com.microsoft).

    y_t = sum over the chosen experts e of  weight_te * down_e( silu(gate_e x_t) * (up_e x_t) )

The operator takes the experts' matrices stacked. `swiglu_fusion=1` wants gate and up in one matrix,
their rows taking turns, `activation_alpha=1` and `activation_beta=0` make its activation SwiGLU,
and `router_weights` carries weights that are not a softmax of what the choice was made by. The
choice itself is made before (`router`): 1 and 0 as `router_probs` leave nothing to round.

On the CPU 4-bit codes in groups of columns, symmetric or not, are exact to 5e-7. Codes of 2 and
8 bits are not (1e-2: their kernels round the activations to 8 bits), nor does the operator know an
act-order. Stored, per layer:

    PREFIX.gate_up_proj.codes    uint8 (E, 2F, H/2), the first of two codes in the low bits
    PREFIX.gate_up_proj.scales   (E, 2F, H/group) in the graph's precision
    PREFIX.gate_up_proj.zeros    uint8 (E, 2F, ceil(H/group/2)), asymmetric grids only
    PREFIX.down_proj.*           the same with (E, H, F)

Source: onnxruntime ContribOperators.md, QMoE, and its CPU kernel by experiment.

Shape legend: E experts, F expert intermediate, H hidden, O output rows, I input columns, G groups,
T tokens.
"""

from collections.abc import Callable, Iterator

import onnx_ir as ir
import torch
from torch import Tensor

from tightfit.calib.dimensions import MoeDimensions
from tightfit.export.onnx.graph import MICROSOFT, GraphBuilder, StoredTensor, typed
from tightfit.export.onnx.grids import QMOE_BITS, act_order_refusal, qmoe_grid
from tightfit.export.onnx.options import Precision
from tightfit.export.onnx.router import Routing
from tightfit.export.onnx.stored import load_declared
from tightfit.export.weights import QuantizedWeight, Weights
from tightfit.quant.grids.integer import IntegerGrid
from tightfit.quant.registry import get_grid
from tightfit.quant.tensor import QuantizedTensor

_PER_BYTE = 2
_PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""What is stored, and which of an expert's matrices take turns in its rows."""
_TORCH_TYPES = {Precision.FLOAT32: torch.float32, Precision.FLOAT16: torch.float16}


def experts_grid(weights: Weights, prefix: str, n_experts: int) -> IntegerGrid | None:
    """The grid of a layer's experts (`prefix`.E.gate_proj ...) if QMoE holds it, else None."""
    return qmoe_grid(
        weight.grid if isinstance(weight, QuantizedWeight) else ""
        for weight in (weights[name] for name in _names(prefix, n_experts))
    )


def qmoe(
    graph: GraphBuilder,
    prefix: str,
    x_TH: ir.Value,
    routing: Routing,
    weights: Weights,
    moe: MoeDimensions,
    precision: Precision,
) -> ir.Value:
    """The routed experts' sum (T, H), for experts whose `experts_grid` is not None.

    Raises `QuantizationError` for act-order.
    """
    n_experts = moe.n_routed_experts
    grid = experts_grid(weights, prefix, n_experts)
    assert grid is not None, prefix
    for name in _names(prefix, n_experts):
        if _quantized(weights, name).group_index_I is not None:
            raise act_order_refusal(name)
    stored = {
        projection: stacked(weights, prefix, projection, n_experts, precision)
        for projection in _PROJECTIONS
    }
    up, down = (
        [None if tensor is None else graph.stored(tensor) for tensor in tensors]
        for tensors in stored.values()
    )
    chosen_TE, weight_TE = routing.chosen_TE, routing.weight_TE
    if precision is not Precision.FLOAT32:
        to = int(precision.data_type)
        chosen_TE = graph.op("Cast", [chosen_TE], name=f"{prefix}.chosen", to=to)
        weight_TE = graph.op("Cast", [weight_TE], name=f"{prefix}.weights", to=to)
    inputs = [x_TH, chosen_TE, up[0], up[1], None, down[0], down[1], None, None, None, None]
    y_TH = graph.op(
        "QMoE",
        [*inputs, up[2], down[2], None, weight_TE],
        name=prefix,
        domain=MICROSOFT,
        k=moe.n_experts_per_token,
        quant_type="int",
        expert_weight_bits=QMOE_BITS,
        block_size=grid.group_size,
        weights_prepacked=0,
        accuracy_level=1,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=0,
    )
    n_hidden = weights[f"{prefix}.0.down_proj.weight"].shape[0]
    return typed(y_TH, precision.data_type, (f"{prefix}.n_tokens", n_hidden))


def stacked(
    weights: Weights, prefix: str, projection: str, n_experts: int, precision: Precision
) -> tuple[StoredTensor, StoredTensor, StoredTensor | None]:
    """Codes, scales and zero points of all experts, loaded one expert at a time when written."""
    parts = _PROJECTIONS[projection]
    weight = _quantized(weights, f"{prefix}.0.{parts[0]}.weight")
    grid = get_grid(weight.grid)
    assert isinstance(grid, IntegerGrid)
    n_rows, n_columns = weight.shape
    n_groups = n_columns // grid.group_size

    def store(
        kind: str, dtype: ir.DataType, width: int, take: Callable[[QuantizedTensor], Tensor]
    ) -> StoredTensor:
        def chunks() -> Iterator[memoryview]:
            for expert in range(n_experts):
                sources = [f"{prefix}.{expert}.{part}.weight" for part in parts]
                tensors = [load_declared(_quantized(weights, name)) for name in sources]
                rows = torch.stack([take(tensor) for tensor in tensors], dim=1)
                yield rows.contiguous().view(torch.uint8).reshape(-1).numpy().data

        shape = (n_experts, len(parts) * n_rows, width)
        return StoredTensor(
            name=f"{prefix}.{projection}.{kind}", dtype=dtype, shape=shape, chunks=chunks
        )

    scale_type = _TORCH_TYPES[precision]
    return (
        store(
            "codes",
            ir.DataType.UINT8,
            n_columns // _PER_BYTE,
            lambda tensor: _pack(tensor.codes_OI),
        ),
        store(
            "scales",
            precision.data_type,
            n_groups,
            lambda tensor: tensor.params["scale"].to(scale_type),
        ),
        None
        if grid.symmetric
        else store(
            "zeros",
            ir.DataType.UINT8,
            -(-n_groups // _PER_BYTE),
            lambda tensor: _pack(tensor.params["zero"]),
        ),
    )


def _names(prefix: str, n_experts: int) -> Iterator[str]:
    """Of all matrices of a layer's experts."""
    for expert in range(n_experts):
        for parts in _PROJECTIONS.values():
            for part in parts:
                yield f"{prefix}.{expert}.{part}.weight"


def _quantized(weights: Weights, name: str) -> QuantizedWeight:
    weight = weights[name]
    assert isinstance(weight, QuantizedWeight), name
    return weight


def _pack(codes_OI: Tensor) -> Tensor:
    """uint8 (O, ceil(I / 2)): two codes a byte, the first in the low bits, each row padded."""
    padded_OI = torch.nn.functional.pad(codes_OI, (0, codes_OI.shape[1] % _PER_BYTE))
    return padded_OI[:, 0::2] | padded_OI[:, 1::2] << QMOE_BITS
