"""KL divergence of our files against llama.cpp's importance-matrix quantization, at equal size.

    python -m benchmarks.quality [--models tiny-r1,smollm2] [--file-types q4_k_m,q2_k]

For each model and file type GGUFs of the same tensor types, so of the same size to the byte:

- `llama.cpp, plain`: ggml's own `ggml_quantize_chunk`, no calibration;
- `llama.cpp, imatrix`: the same under the importance matrix (mean x² of each input, collected on
  the unquantized model as llama-imatrix does, the output head included);
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
from numpy.typing import NDArray

from benchmarks.makers import CPU, ggml_tensors, importance_matrix, our_tensors, storage_of
from benchmarks.subjects import ANSWER_TOKENS, CONTEXT_TOKENS, Subject, smollm2, tiny_r1
from tightfit.calib.decoder import Decoder
from tightfit.calib.locate import EMBEDDED_NAME
from tightfit.calib.tokenizer import load_tokenizer, prompt_ids
from tightfit.drift.grading import Completion, Grade, Grader
from tightfit.drift.measures.tokens import TokenDrift, TokenTable, compare_sample, keep_sample
from tightfit.export.gguf.writer import GgufTensor, write_gguf
from tightfit.pipeline.gguf_artifact import gguf_metadata
from tightfit.pipeline.lossless import lossless_gguf
from tightfit.pipeline.quantize import Algorithm
from tightfit.runtimes.llamacpp import LlamaCpp
from tightfit.runtimes.logprobs import TokenLogprobs
from tightfit.targets.schemes.ggml_file_types import ggml_file_type
from tightfit.targets.schemes.ggml_types import GgmlType
from tightfit.targets.schemes.gguf import gguf_shapes, scheme_types

FILE_TYPES = {
    EMBEDDED_NAME: ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k"),
    "smollm2": ("q2_k", "q3_k_m", "q4_k_m"),
}
"""File types by model; the larger model takes minutes for each file."""
PLAIN = "llama.cpp, plain"
IMATRIX = "llama.cpp, imatrix"
OURS = (Algorithm.RTN, Algorithm.GPTQ, Algorithm.AWQ_GPTQ)
TABLE_HEAD = (
    "| file type | method | size (bytes) | mean KL (nats) ± s.e. | KL ÷ imatrix's | 99 % KL "
    "| top-1 agreement | perplexity (baseline) | solved | CPU s |"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One file measured."""

    file_type: str
    method: str
    size_bytes: int
    drift: TokenDrift
    n_correct: int | None
    """Held-out problems solved greedily; None for a model without any."""
    cpu_s: float


def measure(subject: Subject, path: Path, baseline: Sequence[TokenLogprobs]) -> TokenDrift:
    """Drift of a file on the evaluation sequences."""
    table = TokenTable()
    with LlamaCpp(path, context_tokens=CONTEXT_TOKENS) as artifact:
        for number, (kept, sample) in enumerate(zip(baseline, subject.evaluation, strict=True)):
            table.add(number, compare_sample(kept, sample, artifact))
    return table.summarize()


def count_correct(subject: Subject, path: Path) -> int | None:
    """Problems that the file solves greedily."""
    if not subject.problems:
        return None
    tokenizer = load_tokenizer(subject.checkpoint.path)
    prompts = [prompt_ids(tokenizer, problem.problem) for problem in subject.problems]
    with LlamaCpp(path, context_tokens=CONTEXT_TOKENS) as model, Grader() as grader:
        generations = model.generate(prompts, max_tokens=ANSWER_TOKENS, seed=0)
        grades = grader.grade(
            [
                Completion(text=made.text, finished=made.finished, gold=problem.answer)
                for made, problem in zip(generations, subject.problems, strict=True)
            ]
        )
    return grades.count(Grade.CORRECT)


def baseline_logprobs(subject: Subject) -> list[TokenLogprobs]:
    """Distributions of transformers on the checkpoint."""
    checkpoint = subject.checkpoint
    decoder = Decoder(checkpoint.path, checkpoint.architecture, CPU)
    sequences = [sample.tokens for sample in subject.evaluation]
    logits = decoder.logits(sequences, checkpoint.load)
    return [
        keep_sample(sample, [logits_TV.numpy()])
        for sample, logits_TV in zip(subject.evaluation, logits, strict=True)
    ]


def makers(
    subject: Subject, types: Mapping[str, GgmlType], importance: Mapping[str, NDArray[np.float32]]
) -> dict[str, Callable[[Path], list[GgufTensor]]]:
    """How each method makes the file's tensors, given a folder to work in."""

    def ours(algorithm: Algorithm) -> Callable[[Path], list[GgufTensor]]:
        storage = storage_of(subject, types)
        return lambda folder: our_tensors(subject, storage, algorithm, folder)

    theirs: dict[str, Callable[[Path], list[GgufTensor]]] = {
        PLAIN: lambda _folder: ggml_tensors(subject, types, {}),
        IMATRIX: lambda _folder: ggml_tensors(subject, types, importance),
    }
    return theirs | {algorithm.value: ours(algorithm) for algorithm in OURS}


def compare(subject: Subject, file_types: Sequence[str], folder: Path) -> list[Row]:
    """All files of a model."""
    checkpoint = subject.checkpoint
    architecture, dimensions = checkpoint.architecture, checkpoint.dimensions
    importance = importance_matrix(subject, folder)
    baseline = baseline_logprobs(subject)
    rows = []
    for scheme in file_types:
        shapes = gguf_shapes(architecture, dimensions)
        types = scheme_types(scheme, shapes, architecture, dimensions)
        for method, make in makers(subject, types, importance).items():
            start = time.process_time()
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                path = Path(temporary) / "model.gguf"
                metadata = gguf_metadata(checkpoint, ggml_file_type(scheme), importance=None)
                write_gguf(path, metadata=metadata, tensors=make(Path(temporary)))
                row = Row(
                    file_type=scheme,
                    method=method,
                    size_bytes=path.stat().st_size,
                    cpu_s=time.process_time() - start,
                    drift=measure(subject, path, baseline),
                    n_correct=count_correct(subject, path),
                )
            print(f"{subject.name} {scheme} {method}: KL {row.drift.kl_mean_nats:.6f}", flush=True)
            rows.append(row)
    return rows


def as_markdown(subject: Subject, rows: Sequence[Row]) -> str:
    """A section of the document."""
    with lossless_gguf(subject.checkpoint) as path:
        n_correct = count_correct(subject, path)
    solved = "" if n_correct is None else f" The unquantized model solves {n_correct}."
    theirs = {row.file_type: row.drift.kl_mean_nats for row in rows if row.method == IMATRIX}
    ratios = [row.drift.kl_mean_nats / theirs[row.file_type] for row in rows]
    lines = [
        f"### {subject.name}",
        "",
        f"{subject.text}; {rows[0].drift.n_tokens} scored tokens.{solved}",
        "",
        _verdict(rows, ratios),
        "",
        TABLE_HEAD,
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row, ratio in zip(rows, ratios, strict=True):
        drift = row.drift
        lines.append(
            f"| {row.file_type} | {row.method} | {row.size_bytes:,} | {drift.kl_mean_nats:.5f} ± "
            f"{drift.kl_mean_stderr_nats or 0:.5f} | {ratio:.2f} | {drift.kl_p99_nats:.4f} | "
            f"{100 * drift.top1_agreement:.2f} % | {drift.artifact_perplexity:.4f} "
            f"({drift.baseline_perplexity:.4f}) | {row.n_correct or '-'} | {row.cpu_s:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _verdict(rows: Sequence[Row], ratios: Sequence[float]) -> str:
    """Where GPTQ does not get below llama.cpp's importance matrix, said plainly."""
    compensated = [
        (f"{row.file_type} {row.method} ({ratio:.2f})", ratio)
        for row, ratio in zip(rows, ratios, strict=True)
        if "gptq" in row.method
    ]
    above = [name for name, ratio in compensated if ratio >= 1]
    if not above:
        return "GPTQ is below llama.cpp's importance matrix in every row, with and without AWQ."
    return (
        f"GPTQ is below llama.cpp's importance matrix in {len(compensated) - len(above)} of "
        f"{len(compensated)} rows; not in: {', '.join(above)}."
    )


def quality_sections(file_types: Mapping[str, Sequence[str]]) -> str:
    """The document's sections: file types by model."""
    sections = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, types in file_types.items():
            folder = Path(temporary) / name
            folder.mkdir()
            subject = tiny_r1() if name == EMBEDDED_NAME else smollm2(folder)
            sections.append(as_markdown(subject, compare(subject, types, folder)))
    return "\n".join(sections)


def main() -> None:
    """Run a part of the comparison and print its sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(FILE_TYPES))
    parser.add_argument("--file-types", help="comma-separated; default: those of the document")
    options = parser.parse_args()
    types = options.file_types.split(",") if options.file_types else None
    print(quality_sections({name: types or FILE_TYPES[name] for name in options.models.split(",")}))


if __name__ == "__main__":
    main()
