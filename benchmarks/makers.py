"""The tensors of a file as llama.cpp quantizes them, and as we do."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from support.ggml_library import quantize

from benchmarks.subjects import Subject
from tightfit.calib.decoder import Decoder
from tightfit.calib.hidden import HiddenStates, plan_batches
from tightfit.calib.shapes import tensor_shapes
from tightfit.export.gguf.layout import Place, gguf_layout, is_float
from tightfit.export.gguf.writer import GgufTensor, Piece
from tightfit.pipeline.collect import collect_statistics
from tightfit.pipeline.executors.serial import SerialExecutor
from tightfit.pipeline.gguf_tensors import gguf_tensors
from tightfit.pipeline.passes import replay
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.shared import Shared
from tightfit.pipeline.unit_names import model_units
from tightfit.pipeline.walk import Walk
from tightfit.pipeline.weights import checkpoint_weights, quantized_weights
from tightfit.quant.algorithms.hessian import HessianAccumulator, InputStatistics
from tightfit.reporter import SilentReporter
from tightfit.targets.schemes.ggml_types import GgmlType

CPU = torch.device("cpu")


def importance_matrix(subject: Subject, folder: Path) -> dict[str, NDArray[np.float32]]:
    """Mean x² of the input of every linear of the unquantized model, by checkpoint name."""
    checkpoint = subject.checkpoint
    decoder = Decoder(checkpoint.path, checkpoint.architecture, CPU)
    lengths = [len(sample.ids) for sample in subject.calibration.samples]
    width = checkpoint.dimensions.hidden_size
    hidden = HiddenStates(folder / "hidden-0", lengths, width)
    embedding_VD = checkpoint.load(checkpoint.architecture.embedding)
    for number, sample in enumerate(subject.calibration.samples):
        hidden.scatter([number], decoder.embed(sample.ids, embedding_VD)[None])
    batches = plan_batches(lengths)
    importance: dict[str, NDArray[np.float32]] = {}
    for layer in range(decoder.n_blocks):
        block = decoder.block(layer, decoder.load_block(layer, checkpoint.load))
        kind = decoder.block_kind(layer)
        statistics = collect_statistics(decoder, block, kind.inputs, hidden, batches)
        for source in kind.inputs:
            for linear in source.linears:
                name = checkpoint.architecture.tensor(layer, f"{linear}.weight")
                seen = statistics[source.name]
                assert isinstance(seen, InputStatistics), "dense families alone"
                importance[name] = seen.importance_I.numpy().copy()
        following = HiddenStates(folder / f"hidden-{layer + 1}", lengths, width)
        replay(decoder, block, hidden, batches, following)
        hidden = following
    accumulator = HessianAccumulator(width)
    norm_D = checkpoint.load(checkpoint.architecture.final_norm)
    for batch in batches:
        hidden_BTD, real_BT = hidden.gather(batch)
        accumulator.add(decoder.normalize(hidden_BTD[real_BT], norm_D))
    names = checkpoint.architecture
    head = names.embedding if checkpoint.tied_head else names.head
    importance[head] = accumulator.statistics().importance_I.numpy().copy()
    return importance


def ggml_tensors(
    subject: Subject, types: Mapping[str, GgmlType], importance: Mapping[str, NDArray[np.float32]]
) -> list[GgufTensor]:
    """The file that llama-quantize would write, tensor by tensor."""
    checkpoint = subject.checkpoint
    shapes = tensor_shapes(checkpoint.architecture, checkpoint.dimensions)
    weights = checkpoint_weights(checkpoint, dict.fromkeys(shapes, "F32"))
    plain = gguf_tensors(checkpoint, weights)

    def load(place: Place, kind: Type) -> Piece:
        values = place.to_gguf(weights[place.checkpoint_name].values().numpy())
        if is_float(kind):
            return Piece(values)
        return Piece(quantize(kind.name, values, importance.get(place.checkpoint_name)))

    return [
        dataclasses.replace(
            tensor.stored,
            ggml_type=Type(types[tensor.stored.name]),
            loads=[functools.partial(load, tensor.place, Type(types[tensor.stored.name]))],
        )
        if tensor.place is not None
        else tensor.stored
        for tensor in plain
    ]


def storage_of(subject: Subject, types: Mapping[str, GgmlType]) -> dict[str, str]:
    """The same types by checkpoint name."""
    checkpoint = subject.checkpoint
    return {
        place.checkpoint_name: types[place.gguf_name].name
        for place in gguf_layout(checkpoint.architecture, checkpoint.dimensions)
    }


def our_tensors(
    subject: Subject, storage: Mapping[str, str], algorithm: Algorithm, folder: Path
) -> list[GgufTensor]:
    """The file that `tightfit export` writes."""
    checkpoint = subject.checkpoint
    shared = Shared(
        source=checkpoint.source,
        storage=storage,
        method=Method(algorithm=algorithm),
        calibration=subject.calibration,
        folder=folder,
        device=str(CPU),
        threads=torch.get_num_threads(),
    )
    with SerialExecutor(shared) as executor:
        Walk(shared=shared, executor=executor).run(SilentReporter())
    weights = quantized_weights(checkpoint, storage, shared.units, model_units(shared))
    return [tensor.stored for tensor in gguf_tensors(checkpoint, weights)]
