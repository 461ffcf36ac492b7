"""The whole decoder as one ONNX graph, straight from its weights.

    stream = embed(input_ids)
    in every layer:  stream += attention(norm(stream));  stream += mlp(norm(stream))
    logits = head(norm(stream))

Both dialects have the inputs input_ids, attention_mask (1 = real token; prompts are padded on the
right) and past_key_values.N.key / .value, and the outputs logits and present.N.key / .value; the
standard dialect also has the input position_ids. No weight is loaded here.

Shape legend: B batch, S tokens of this run, H hidden.
"""

import onnx_ir as ir

from tightfit.calib.architecture import Architecture
from tightfit.calib.dimensions import ModelDimensions
from tightfit.export.onnx.attention import Attended, grouped_query_attention
from tightfit.export.onnx.cache import Cache, cache_outputs, past_cache
from tightfit.export.onnx.embedding import embed, head
from tightfit.export.onnx.graph import GraphBuilder, OnnxGraph
from tightfit.export.onnx.mla import latent_attention
from tightfit.export.onnx.mlp import gated_mlp
from tightfit.export.onnx.moe import mixture_of_experts
from tightfit.export.onnx.norm import stream_norm
from tightfit.export.onnx.options import OnnxOptions
from tightfit.export.onnx.step import BATCH, LENGTH, TOTAL, Step, build_step
from tightfit.export.weights import Weights

LOGITS = "logits"


def build_graph(
    dimensions: ModelDimensions,
    architecture: Architecture,
    weights: Weights,
    options: OnnxOptions,
    *,
    data_file: str = "model.onnx.data",
    producer: str = "tightfit",
) -> OnnxGraph:
    """The graph of a model, and where its weights lie in `data_file`.

    Raises `QuantizationError` for a grid that the dialect cannot hold.
    """
    graph = GraphBuilder(dimensions.model_type, data_file=data_file)
    input_ids = graph.input("input_ids", ir.DataType.INT64, (BATCH, LENGTH))
    attention_mask = graph.input("attention_mask", ir.DataType.INT64, (BATCH, TOTAL))
    step = build_step(graph, input_ids, attention_mask, dimensions, options)
    pasts = [past_cache(graph, layer, dimensions, options) for layer in range(dimensions.n_layers)]
    stream = embed(graph, input_ids, weights, dimensions, architecture, options)
    branch: ir.Value | None = None
    presents: list[Cache] = []

    def normalize(name: str) -> tuple[ir.Value, ir.Value]:
        """The stream with the last branch added: normalized, and as the float32 that it is."""
        epsilon = dimensions.rms_norm_eps
        return stream_norm(graph, name, stream, branch, weights, epsilon, options)

    for layer, past in enumerate(pasts):
        x, stream = normalize(architecture.tensor(layer, "input_layernorm"))
        name = architecture.tensor(layer, "self_attn")
        attended = _attention(graph, layer, name, x, past, step, weights, dimensions, options)
        presents.append(attended.present)
        branch = attended.output_BSH
        x, stream = normalize(architecture.tensor(layer, "post_attention_layernorm"))
        name = architecture.tensor(layer, "mlp")
        branch = _mlp(graph, layer, name, x, weights, dimensions, options)
    x, _ = normalize(architecture.final_norm.removesuffix(".weight"))
    logits = head(graph, x, weights, architecture, options)
    logits.name = LOGITS
    dtype = options.precision.data_type
    return graph.finish(
        [
            (logits, dtype, (BATCH, LENGTH, dimensions.vocab_size)),
            *cache_outputs(presents, dimensions, options),
        ],
        producer=producer,
    )


def _attention(
    graph: GraphBuilder,
    layer: int,
    name: str,
    x_BSH: ir.Value,
    past: Cache,
    step: Step,
    weights: Weights,
    dimensions: ModelDimensions,
    options: OnnxOptions,
) -> Attended:
    """The attention at module path `name`, in the family's form."""
    attention = grouped_query_attention if dimensions.mla is None else latent_attention
    return attention(graph, layer, name, x_BSH, past, step, weights, dimensions, options)


def _mlp(
    graph: GraphBuilder,
    layer: int,
    name: str,
    x_BSH: ir.Value,
    weights: Weights,
    dimensions: ModelDimensions,
    options: OnnxOptions,
) -> ir.Value:
    """The MLP at module path `name`: dense, or a mixture of experts."""
    if dimensions.moe is None or layer < dimensions.moe.n_dense_layers:
        return gated_mlp(graph, name, x_BSH, weights, options)
    return mixture_of_experts(graph, name, x_BSH, weights, dimensions, options)
