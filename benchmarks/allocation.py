"""`--scheme auto` against llama.cpp's importance-matrix mixes, at equal size.

    python -m benchmarks.allocation [--models tiny-r1,smollm2]

Six sizes a model: those of llama.cpp's Q3_K_M, Q4_K_M and Q5_K_M, and of the mixes between them.
Theirs: ggml's own kernels under the importance matrix, in the types that llama-quantize chooses.
Ours: what the allocator chooses in the same bytes of tensor data, its losses measured once on the
calibration sequences, quantized by AWQ and GPTQ. `benchmarks.quality` measures both alike.
SmolLM2's checkpoint was made from a file of Q4_1, so its weights lie on that grid and near those of
Q5_1: the allocator may not use the two there, which would cost it next to nothing.
The plot shows what the allocator predicted beside what was measured.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.makers import CPU, ggml_tensors, importance_matrix, our_tensors
from benchmarks.quality import baseline_logprobs, measure
from benchmarks.subjects import Subject, smollm2, tiny_r1
from tightfit.calib.decoder import Decoder
from tightfit.calib.locate import EMBEDDED_NAME
from tightfit.drift.measures.tokens import TokenDrift
from tightfit.export.gguf.writer import GgufTensor, write_gguf
from tightfit.pipeline.gguf_artifact import gguf_metadata
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.sensitivity.run import measure_sensitivity
from tightfit.reporter import SilentReporter
from tightfit.runtimes.logprobs import TokenLogprobs
from tightfit.targets.allocation.budget import Budget
from tightfit.targets.allocation.sensitivity import Sensitivity
from tightfit.targets.grids import FLOAT_BYTES
from tightfit.targets.memory_use import GIB
from tightfit.targets.mix import Mix, grid_choices, make_mix
from tightfit.targets.plan import make_plan
from tightfit.targets.profile import Target, load_target
from tightfit.targets.schemes.ggml_file_types import ggml_file_type
from tightfit.targets.schemes.ggml_types import GGML_GRIDS, stored_bytes
from tightfit.targets.schemes.gguf import gguf_shapes, scheme_types
from tightfit.targets.sizes import model_sizes

SIZES = ("q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m")
PLOT_NAME = "quality-predicted.svg"
TARGET = "cpu-64gb"
"""Has room for every size, and executes every grid of ggml's."""
WITHOUT_GRIDS = {"SmolLM2-135M-Instruct": ("Q4_1", "Q5_1")}
"""By subject: grids that its weights come from."""
TABLE_HEAD = (
    "| at the size of | budget (bytes) | used | imatrix: mean KL (nats) ± s.e. "
    "| auto: mean KL (nats) ± s.e. | auto ÷ imatrix | predicted | top-1 agreement, both |"
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Both files of one size."""

    file_type: str
    budget_bytes: int
    used_bytes: int
    theirs: TokenDrift
    ours: TokenDrift
    predicted_nats: float

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return self.ours.kl_mean_nats / self.theirs.kl_mean_nats


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All sizes of a model."""

    subject: Subject
    sensitivity: Sensitivity
    sensitivity_cpu_s: float
    pairs: tuple[Pair, ...]


def compare_sizes(subject: Subject, folder: Path) -> Comparison:
    """Measure all sizes."""
    plan = make_plan(subject.checkpoint.dimensions, _target(subject), model=subject.name)
    importance = importance_matrix(subject, folder)
    baseline = baseline_logprobs(subject)
    checkpoint = subject.checkpoint
    start = time.process_time()
    sensitivity = measure_sensitivity(
        Decoder(checkpoint.path, checkpoint.architecture, CPU),
        checkpoint.load,
        grid_choices(plan.setting, {}),
        Method(),
        subject.calibration,
        folder / "sensitivity",
        SilentReporter(),
    )
    cpu_s = time.process_time() - start
    pairs = []
    for file_type in SIZES:
        shapes = gguf_shapes(checkpoint.architecture, checkpoint.dimensions)
        types = scheme_types(file_type, shapes, checkpoint.architecture, checkpoint.dimensions)
        size_bytes = stored_bytes((types[name], shape) for name, shape in shapes.items())
        budget = Budget(file_gib=size_bytes / GIB)
        mix = make_mix(model_sizes(plan.setting), budget, {}, sensitivity)
        pair = Pair(
            file_type=file_type,
            budget_bytes=mix.budget_bytes,
            used_bytes=mix.used_bytes,
            predicted_nats=mix.candidate.predicted_nats,
            theirs=_measured(subject, ggml_tensors(subject, types, importance), baseline, folder),
            ours=_ours(subject, mix, baseline, folder),
        )
        print(f"{subject.name} {file_type}: {pair.ratio:.2f}", flush=True)
        pairs.append(pair)
    return Comparison(
        subject=subject, sensitivity=sensitivity, sensitivity_cpu_s=cpu_s, pairs=tuple(pairs)
    )


def _target(subject: Subject) -> Target:
    """The target, which executes every grid but those that the subject's weights come from."""
    target = load_target(TARGET)
    left_out = WITHOUT_GRIDS.get(subject.name, ())
    grids = tuple(grid for grid in (*GGML_GRIDS, *FLOAT_BYTES) if grid not in left_out)
    return dataclasses.replace(target, runtimes={**target.runtimes, "llama.cpp": grids})


def _ours(
    subject: Subject, mix: Mix, baseline: Sequence[TokenLogprobs], folder: Path
) -> TokenDrift:
    with tempfile.TemporaryDirectory(dir=folder) as units:
        tensors = our_tensors(subject, mix.storage, Algorithm.AWQ_GPTQ, Path(units))
        return _measured(subject, tensors, baseline, folder)


def _measured(
    subject: Subject, tensors: list[GgufTensor], baseline: Sequence[TokenLogprobs], folder: Path
) -> TokenDrift:
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "model.gguf"
        metadata = gguf_metadata(subject.checkpoint, ggml_file_type("q4_k_m"), importance=None)
        write_gguf(path, metadata=metadata, tensors=tensors)
        return measure(subject, path, baseline)


def as_markdown(made: Comparison) -> str:
    """A section of the document."""
    lines = [
        f"### {made.subject.name}, equal size",
        "",
        f"Losses of {len(made.sensitivity.losses)} matrices measured on "
        f"{made.sensitivity.n_tokens} tokens in {made.sensitivity_cpu_s:.0f} CPU s. "
        + _verdict(made.pairs),
        "",
        TABLE_HEAD,
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for pair in made.pairs:
        used = 100 * pair.used_bytes / pair.budget_bytes
        lines.append(
            f"| {pair.file_type} | {pair.budget_bytes:,} | {used:.2f} % | {_kl(pair.theirs)} | "
            f"{_kl(pair.ours)} | {pair.ratio:.2f} | {pair.predicted_nats:.5f} | "
            f"{100 * pair.theirs.top1_agreement:.2f} %, {100 * pair.ours.top1_agreement:.2f} % |"
        )
    corrections = ", ".join(
        f"{role} {factor:.2f}" for role, factor in sorted(made.sensitivity.corrections.items())
    )
    return "\n".join([*lines, "", f"Measured over predicted KL by role: {corrections}.", ""])


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Predicted against measured KL: single tensors, and whole files."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    singles, files = figure.subplots(1, 2)
    for made in comparisons:
        measured = made.sensitivity.measured
        singles.plot(
            [item.predicted_nats for item in measured],
            [item.measured_nats for item in measured],
            "o",
            alpha=0.6,
            label=made.subject.name,
        )
        files.plot(
            [pair.predicted_nats for pair in made.pairs],
            [pair.ours.kl_mean_nats for pair in made.pairs],
            "o-",
            label=made.subject.name,
        )
    singles.set_title("one tensor on one grid, before the correction of its role")
    files.set_title("auto, the whole file in llama.cpp")
    for axes in (singles, files):
        axes.axline((1e-4, 1e-4), slope=1, color="gray", linewidth=0.8)
        axes.set(
            xscale="log", yscale="log", xlabel="predicted KL (nats)", ylabel="measured KL (nats)"
        )
        axes.title.set_fontsize("small")
        axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def allocation_sections(models: Sequence[str], plot: Path) -> str:
    """The document's sections, and the plot beside them."""
    with tempfile.TemporaryDirectory() as temporary:
        comparisons = []
        for name in models:
            folder = Path(temporary) / name
            folder.mkdir()
            subject = tiny_r1() if name == EMBEDDED_NAME else smollm2(folder)
            comparisons.append(compare_sizes(subject, folder))
        draw(comparisons, plot)
        return "\n".join(map(as_markdown, comparisons))


def _kl(drift: TokenDrift) -> str:
    return f"{drift.kl_mean_nats:.5f} ± {drift.kl_mean_stderr_nats or 0:.5f}"


def _verdict(pairs: Sequence[Pair]) -> str:
    above = [f"{pair.file_type} ({pair.ratio:.2f})" for pair in pairs if pair.ratio >= 1]
    if not above:
        return f"auto is below llama.cpp's importance matrix at all {len(pairs)} sizes."
    return f"auto is not below llama.cpp's importance matrix at: {', '.join(above)}."


def main() -> None:
    """Run the comparison and print its sections."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=f"{EMBEDDED_NAME},smollm2")
    parser.add_argument("--plot", type=Path, default=Path(PLOT_NAME))
    options = parser.parse_args()
    print(allocation_sections(options.models.split(","), options.plot))


if __name__ == "__main__":
    main()
