"""KL divergence of our files against llama.cpp's importance-matrix quantization, at equal size.

    python -m benchmarks.quality [--models tiny-r1,smollm2] [--file-types q4_k_m,q2_k]

For each model and file type three GGUFs of the same tensor types, so of the same size to the byte:

- `llama.cpp`: ggml's own `ggml_quantize_chunk` under the importance matrix (mean x² of each input,
  collected on the unquantized model as llama-imatrix does, the output head included);
- `rtn`: our fit of the same grids under the same importance, no compensation;
- `gptq`, `awq-gptq`: the same grids with the codes chosen by GPTQ, without and with AWQ scales.

All use the same calibration sequences. KL, agreement and perplexity are measured by `tightfit
drift`'s own code in llama.cpp on other sequences, against transformers on the checkpoint.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from support.ggml_library import quantize
from support.smollm2 import smollm2_checkpoint

from tightfit.calib.calibration import CalibrationOptions, CalibrationSet, load_calibration
from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.decoder import Decoder
from tightfit.calib.hidden import HiddenStates, plan_batches
from tightfit.calib.locate import EMBEDDED_NAME, locate_model
from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.drift.measure import TokenSample, measure_token_drift
from tightfit.drift.metrics import TokenDrift
from tightfit.drift.subset import load_subset, parse_spec
from tightfit.export.gguf.layout import gguf_layout, is_float
from tightfit.export.gguf.writer import GgufTensor, write_gguf
from tightfit.pipeline.collect import collect_statistics, replay
from tightfit.pipeline.gguf_artifact import (
    ArtifactTensor,
    float_tensors,
    gguf_metadata,
    quantized_tensors,
)
from tightfit.pipeline.job import Job
from tightfit.pipeline.lossless import lossless_gguf
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.walk import Walk
from tightfit.quant.algorithms.hessian import HessianAccumulator
from tightfit.quant.registry import get_grid
from tightfit.reporter import SilentReporter
from tightfit.runtimes.llamacpp import LlamaCpp
from tightfit.targets.candidates import gguf_shapes, scheme_types
from tightfit.targets.schemes.ggml_file_types import ggml_file_type

CPU = torch.device("cpu")
FILE_TYPES = ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k")
WIKITEXT = Path(__file__).parents[2] / "shared" / "data" / "wikitext2_test.raw"
SEQUENCE_TOKENS = 512
CALIBRATION_SEQUENCES = 16
EVALUATION_SEQUENCES = 12
TINY_TRACES = 64
TABLE_HEAD = (
    "| file type | method | size (bytes) | mean KL (nats) ± s.e. | KL ÷ llama.cpp's | 99 % KL "
    "| top-1 agreement | perplexity (baseline) | CPU s |"
)
OURS = (Algorithm.RTN, Algorithm.GPTQ, Algorithm.AWQ_GPTQ)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model with its calibration and its evaluation sequences, which are disjoint."""

    name: str
    checkpoint: Checkpoint
    calibration: CalibrationSet
    evaluation: tuple[TokenSample, ...]
    text: str
    """What the sequences are, for the document."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One file measured."""

    file_type: str
    method: str
    size_bytes: int
    drift: TokenDrift
    seconds: float


def tiny_r1() -> Subject:
    """The embedded model: embedded calibration, its own answers to held-out problems."""
    checkpoint = open_checkpoint(locate_model(EMBEDDED_NAME))
    tokenizer = load_tokenizer(checkpoint.path)
    problems = load_subset(parse_spec(f"embedded:n={TINY_TRACES}")).problems
    prompts = [prompt_ids(tokenizer, problem.problem) for problem in problems]
    with lossless_gguf(checkpoint) as path, LlamaCpp(path, context_tokens=1024) as model:
        answers = model.generate(prompts, max_tokens=512, seed=0)
    return Subject(
        name=EMBEDDED_NAME,
        checkpoint=checkpoint,
        calibration=load_calibration(tokenizer, CalibrationOptions()),
        evaluation=tuple(
            TokenSample(tokens=(*prompt, *answer.token_ids), first_scored=len(prompt))
            for prompt, answer in zip(prompts, answers, strict=True)
        ),
        text=f"calibration: the embedded set; evaluation: its own greedy answers to {TINY_TRACES} "
        "held-out problems",
    )


def smollm2(folder: Path) -> Subject:
    """SmolLM2-135M: WikiText-2, calibrated on its first part and evaluated on its last."""
    checkpoint = open_checkpoint(smollm2_checkpoint(folder / "SmolLM2-135M-Instruct"))
    tokenizer = load_tokenizer(checkpoint.path)
    calibration = folder / "calibration.txt"
    text = WIKITEXT.read_text(encoding="utf-8")
    calibration.write_text(text[: len(text) // 2], encoding="utf-8")
    ids = tokenizer.encode(text[len(text) // 2 :], add_special_tokens=False)
    options = CalibrationOptions(
        source=str(calibration), samples=CALIBRATION_SEQUENCES, max_tokens=SEQUENCE_TOKENS
    )
    return Subject(
        name="SmolLM2-135M-Instruct",
        checkpoint=checkpoint,
        calibration=load_calibration(tokenizer, options),
        evaluation=tuple(
            TokenSample(tokens=tuple(ids[start : start + SEQUENCE_TOKENS]), first_scored=1)
            for start in range(0, EVALUATION_SEQUENCES * SEQUENCE_TOKENS, SEQUENCE_TOKENS)
        ),
        text=f"WikiText-2: {CALIBRATION_SEQUENCES} sequences of {SEQUENCE_TOKENS} tokens from its "
        f"first half for calibration, {EVALUATION_SEQUENCES} from its second for evaluation",
    )


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
        kind = checkpoint.architecture.block_kind(layer)
        statistics = collect_statistics(decoder, block, kind.inputs, hidden, batches)
        for source in kind.inputs:
            for linear in source.linears:
                name = checkpoint.architecture.tensor(layer, f"{linear}.weight")
                importance[name] = statistics[source.name].importance_I.numpy().copy()
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
    subject: Subject, types: Mapping[str, Type], importance: Mapping[str, NDArray[np.float32]]
) -> list[GgufTensor]:
    """The file that llama-quantize would write, tensor by tensor."""
    checkpoint = subject.checkpoint
    plain = float_tensors(checkpoint, dict.fromkeys(types, Type.F32))
    places = {
        place.gguf_name: place
        for place in gguf_layout(checkpoint.architecture, checkpoint.dimensions)
    }

    def loader(tensor: ArtifactTensor, kind: Type) -> Callable[[], NDArray[np.generic]]:
        def load() -> NDArray[np.generic]:
            values = tensor.values()
            if is_float(kind):
                return values
            return quantize(kind.name, values, importance.get(tensor.checkpoint_name))

        return load

    return [
        dataclasses.replace(
            tensor.stored,
            ggml_type=types[tensor.stored.name],
            load=loader(tensor, types[tensor.stored.name]),
        )
        if tensor.stored.name in places
        else tensor.stored
        for tensor in plain
    ]


def our_tensors(
    subject: Subject, types: Mapping[str, Type], algorithm: Algorithm, folder: Path
) -> list[GgufTensor]:
    """The file that `tightfit export` writes."""
    checkpoint = subject.checkpoint
    job = Job(folder, {}, overwrite=False)
    walk = Walk(
        decoder=Decoder(checkpoint.path, checkpoint.architecture, CPU),
        source=checkpoint.load,
        grids={
            place.checkpoint_name: get_grid(types[place.gguf_name].name)
            for place in gguf_layout(checkpoint.architecture, checkpoint.dimensions)
            if not is_float(types[place.gguf_name])
        },
        method=Method(algorithm=algorithm),
        calibration=subject.calibration,
        job=job,
    )
    walk.run(SilentReporter())
    return [tensor.stored for tensor in quantized_tensors(checkpoint, types, job, walk.units)]


def measure(subject: Subject, path: Path, baseline: Sequence[NDArray[np.float32]]) -> TokenDrift:
    """Drift of a file on the evaluation sequences."""
    stream = iter(baseline)
    with LlamaCpp(path, context_tokens=1024) as artifact:
        return measure_token_drift(lambda _ids: next(stream), artifact, subject.evaluation)


def baseline_logits(subject: Subject) -> list[NDArray[np.float32]]:
    """Logits of transformers on the checkpoint."""
    checkpoint = subject.checkpoint
    decoder = Decoder(checkpoint.path, checkpoint.architecture, CPU)
    sequences = [sample.tokens for sample in subject.evaluation]
    return [logits_TV.numpy() for logits_TV in decoder.logits(sequences, checkpoint.load)]


def compare(subject: Subject, file_types: Sequence[str], folder: Path) -> list[Row]:
    """All files of a model."""
    checkpoint = subject.checkpoint
    architecture, dimensions = checkpoint.architecture, checkpoint.dimensions
    importance = importance_matrix(subject, folder)
    baseline = baseline_logits(subject)
    rows = []
    for scheme in file_types:
        shapes = gguf_shapes(architecture, dimensions)
        types = scheme_types(scheme, shapes, architecture, dimensions)
        makers: dict[str, Callable[[Path], list[GgufTensor]]] = {
            "llama.cpp": lambda _job, types=types: ggml_tensors(subject, types, importance)
        }
        for algorithm in OURS:
            makers[algorithm.value] = lambda job, types=types, algorithm=algorithm: our_tensors(
                subject, types, algorithm, job
            )
        for method, make in makers.items():
            start = time.process_time()
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                path = Path(temporary) / "model.gguf"
                metadata = gguf_metadata(checkpoint, ggml_file_type(scheme), importance=None)
                write_gguf(path, metadata=metadata, tensors=make(Path(temporary)))
                seconds = time.process_time() - start
                drift = measure(subject, path, baseline)
                size_bytes = path.stat().st_size
            row = Row(
                file_type=scheme,
                method=method,
                size_bytes=size_bytes,
                drift=drift,
                seconds=seconds,
            )
            print(f"{subject.name} {scheme} {method}: KL {drift.kl_mean_nats:.6f}", flush=True)
            rows.append(row)
    return rows


def as_markdown(subject: Subject, rows: Sequence[Row]) -> str:
    """A section of the document."""
    theirs = {row.file_type: row for row in rows if row.method == "llama.cpp"}
    lines = [
        f"### {subject.name}",
        "",
        f"{subject.text} ({rows[0].drift.n_tokens} scored tokens).",
        "",
        TABLE_HEAD,
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        drift = row.drift
        ratio = drift.kl_mean_nats / theirs[row.file_type].drift.kl_mean_nats
        lines.append(
            f"| {row.file_type} | {row.method} | {row.size_bytes:,} | {drift.kl_mean_nats:.5f} ± "
            f"{drift.kl_mean_stderr_nats or 0:.5f} | {ratio:.2f} | {drift.kl_p99_nats:.4f} | "
            f"{100 * drift.top1_agreement:.2f} % | {drift.artifact_perplexity:.4f} "
            f"({drift.baseline_perplexity:.4f}) | {row.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def quality_sections(models: Sequence[str], file_types: Sequence[str]) -> str:
    """The document's sections for these models."""
    sections = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in models:
            folder = Path(temporary) / name
            folder.mkdir()
            subject = tiny_r1() if name == EMBEDDED_NAME else smollm2(folder)
            sections.append(as_markdown(subject, compare(subject, file_types, folder)))
    return "\n".join(sections)


def main() -> None:
    """Run a part of the comparison and print its sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="tiny-r1,smollm2")
    parser.add_argument("--file-types", default=",".join(FILE_TYPES))
    options = parser.parse_args()
    print(quality_sections(options.models.split(","), options.file_types.split(",")))


if __name__ == "__main__":
    main()
