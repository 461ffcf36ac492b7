"""Weights to an ONNX file with its data file, read back and recorded.

`onnx/model.onnx` and, for `onnxruntime-genai`, `genai_config.json` at the root beside the
tokenizer. With Transformers.js' naming the files are `onnx/model_q4f16.onnx` and so on.
"""

import dataclasses
from pathlib import Path

from tightfit import __version__
from tightfit.calib.checkpoint import Checkpoint
from tightfit.export.manifest import Artifact, GraphRecord, TensorRecord, hash_file
from tightfit.export.onnx.decoder import build_graph
from tightfit.export.onnx.genai import GENAI_CONFIG_NAME, write_genai_config
from tightfit.export.onnx.graph import OnnxGraph
from tightfit.export.onnx.naming import OnnxLayout, add_transformers_js_config, onnx_names
from tightfit.export.onnx.options import Dialect, OnnxOptions, Precision
from tightfit.export.onnx.readback import read_weights
from tightfit.export.onnx.writer import write_onnx
from tightfit.export.weights import FloatWeight, Weight, unstacked
from tightfit.pipeline.exactness import check_exact
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.work import Work
from tightfit.targets.plan import Plan

FOLDER = "onnx"


def onnx_paths(request: ExportRequest, plan: Plan) -> tuple[Path, Path]:
    """The model and its data file."""
    names = onnx_names(plan.chosen.scheme, _precision(plan), request.onnx_layout)
    model, data = (request.output / FOLDER / name for name in names)
    return model, data


def onnx_paths_in_way(request: ExportRequest, _checkpoint: Checkpoint, plan: Plan) -> list[Path]:
    """What already lies where the export will write."""
    return [path for path in onnx_paths(request, plan) if path.exists()]


def graph_options(request: ExportRequest, plan: Plan) -> OnnxOptions:
    """The graph that was asked for."""
    return OnnxOptions(dialect=request.onnx_dialect, precision=_precision(plan))


def write_onnx_artifact(work: Work) -> Artifact:
    """Write the files, read them back, record them."""
    request, plan = work.request, work.plan
    precision = _precision(plan)
    model, data = onnx_paths(request, plan)
    options = graph_options(request, plan)
    artifact = write_graph(work, model, data.name, options)
    if request.onnx_layout is OnnxLayout.TRANSFORMERS_JS:
        add_transformers_js_config(request.output, plan.chosen.scheme, precision)
    if options.dialect is not Dialect.ORT:
        return artifact
    written = write_genai_config(
        request.output,
        work.checkpoint.dimensions,
        model_file=f"{FOLDER}/{model.name}",
        context_tokens=plan.context_tokens,
    )
    if not written:
        work.reporter.warning(
            f"onnxruntime-genai does not know {work.checkpoint.dimensions.model_type}: the folder "
            "has no genai_config.json, and onnxruntime itself runs the model"
        )
        return artifact
    config = hash_file(request.output / GENAI_CONFIG_NAME, request.output)
    return dataclasses.replace(artifact, files=(*artifact.files, config))


def write_graph(work: Work, path: Path, data_name: str, options: OnnxOptions) -> Artifact:
    """Write one ONNX model and prove that it holds the weights."""
    graph = build_graph(
        work.checkpoint.dimensions,
        work.checkpoint.architecture,
        unstacked(work.weights),
        options,
        data_file=data_name,
        producer=f"tightfit {__version__}",
    )
    files = _write(work, path, graph)
    work.reporter.stage(f"Reading {_shown(work, path)} back, bit for bit")
    weights = unstacked(work.weights)
    with work.reporter.progress(len(weights), "tensors") as progress:
        hashes = check_exact(
            path.name,
            ((stored.name, stored.chunks()) for stored in read_weights(path)),
            {name: weight.rows for name, weight in weights.items()},
            lambda: progress.advance(1),
        )
    return work.record(
        files=files,
        tensors=[_record(name, weight, hashes[name], work) for name, weight in weights.items()],
        hashes=hashes,
        stored_bytes=graph.data_bytes,
        graph=GraphRecord(dialect=options.dialect.value, precision=options.precision.value),
    )


def _shown(work: Work, path: Path) -> str:
    """The path in the folder: two formats have a model.onnx."""
    return path.relative_to(work.request.output).as_posix()


def _precision(plan: Plan) -> Precision:
    assert plan.precision is not None, "an ONNX plan has one"
    return Precision(plan.precision)


def _write(work: Work, path: Path, graph: OnnxGraph) -> tuple[Path, ...]:
    work.reporter.stage(f"Writing {_shown(work, path)}")
    with work.reporter.progress(len(graph.data), "tensors") as progress:
        return write_onnx(
            path, graph, overwrite=True, progress=lambda _name, _done, _total: progress.advance(1)
        )


def _record(name: str, weight: Weight, sha256: str, work: Work) -> TensorRecord:
    stored_as = (
        str(weight.dtype).removeprefix("torch.") if isinstance(weight, FloatWeight) else weight.grid
    )
    return TensorRecord(
        name=name,
        grid=stored_as,
        shape=tuple(weight.shape),
        sha256=sha256,
        relative_error=work.relative_errors.get(name),
    )
