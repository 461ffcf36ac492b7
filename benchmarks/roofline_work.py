"""What each stage of GPTQ (W4, groups of 128) needs at least, counted from a model's sizes.

Operations of matrix products are those of `r1_work`. Bytes are the least that a stage can move: in
each pass every matrix that it reads or writes once, in float32 as tightfit computes. The column
loop is counted as the code does it, each operation of torch a pass through memory (the tests count
them again). Left out are what is elementwise in the forward, and the fits of the scales.

Shape legend: O output rows, I input columns, T tokens, B columns of a block of the loop.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Final

from benchmarks.r1_cost import LENGTH, N_TOKENS
from benchmarks.r1_work import FLOAT_BYTES, GROUP, SAMPLE_TOKENS, hessian, solve
from benchmarks.race.limit import FORWARDS
from tightfit.calib.architecture import architecture_of
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.models import find_model
from tightfit.calib.shapes import tensor_shapes
from tightfit.quant.algorithms.column_loop import BLOCK_COLUMNS

BATCH_EXPERTS: Final = 64
BF16_BYTES, FP8_BYTES = 2, 1
"""Of a weight as the checkpoints store it."""
ROUND_BYTES: Final = 89
"""Read and written for each weight to round its column and to find the error."""
COLUMN_KERNELS: Final = 12
"""Of rounding a column, and of correcting the others of its block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Amounts:
    """What a stage needs at least."""

    flops: float = 0.0
    """In float32."""
    tf32_flops: float = 0.0
    """Of the calibration's products, whose factors may be TF32 (`calib.precision`)."""
    memory_bytes: float = 0.0
    """Read and written in the GPU's memory."""
    pcie_bytes: float = 0.0

    def __add__(self, other: "Amounts") -> "Amounts":
        """Both."""
        names = [field.name for field in fields(self)]
        return Amounts(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def __mul__(self, count: float) -> "Amounts":
        """So often."""
        return Amounts(**{field.name: getattr(self, field.name) * count for field in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A distinct input and the rows of the linears that read it."""

    width: int
    rows: tuple[int, ...]

    @property
    def n_weights(self) -> int:
        """Of those linears."""
        return self.width * sum(self.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is solved together: a layer, or a batch of experts."""

    title: str
    stages: dict[str, Amounts]
    n_columns: int
    """That the loop visits one after the other; in alike experts side by side."""
    n_alike: int
    """How many there are of it in the model."""
    all_alike: str
    """What those are."""


def forward(of: Input, n_tokens: float, batch_tokens: float) -> Amounts:
    """The products of an input with its linears; the weights are read once a batch."""
    activations = n_tokens * (of.width + sum(of.rows))
    weights = of.n_weights * n_tokens / batch_tokens
    flops = 2.0 * of.n_weights * n_tokens
    return Amounts(tf32_flops=flops, memory_bytes=FLOAT_BYTES * (activations + weights))


def attention(dimensions: ModelDimensions, n_tokens: int, length: int) -> Amounts:
    """Scores and their sum of values, of the pairs that the causal mask leaves."""
    pairs = n_tokens * length / 2
    states = n_tokens * (2 * dimensions.q_width + 2 * dimensions.kv_width)
    return Amounts(tf32_flops=4 * pairs * dimensions.q_width, memory_bytes=FLOAT_BYTES * states)


def statistics(width: int, n_tokens: float, batch_tokens: float) -> Amounts:
    """X^T X as tightfit computes it; a batch reads X, and reads and writes the lower triangle."""
    sums = width**2 * n_tokens / batch_tokens  # half of it, twice
    flops = hessian(width, n_tokens).flops
    return Amounts(tf32_flops=flops, memory_bytes=FLOAT_BYTES * (n_tokens * width + sums))


def factor(width: int) -> Amounts:
    """Cholesky and the triangular solve: each reads a matrix and writes one."""
    return Amounts(flops=solve([], width).flops, memory_bytes=FLOAT_BYTES * 4.0 * width**2)


def loop_inside(of: Input) -> Amounts:
    """Rounding of each column, and its rank-one correction of the rest of its block."""
    rest = BLOCK_COLUMNS - 1
    return Amounts(
        flops=float(of.n_weights * rest),
        memory_bytes=float(of.n_weights * (ROUND_BYTES + FLOAT_BYTES * BLOCK_COLUMNS)),
    )


def loop_behind(of: Input) -> Amounts:
    """The products that correct what comes after each block: they read and write all of it."""
    blocks = of.width // BLOCK_COLUMNS
    later = sum(of.rows) * BLOCK_COLUMNS * blocks * (blocks - 1) // 2  # weights, over all blocks
    return Amounts(flops=2.0 * BLOCK_COLUMNS * later, memory_bytes=2.0 * FLOAT_BYTES * later)


def layer_error(of: Input) -> Amounts:
    """tr(D H D^T) of the error and of the weights: a product with H each."""
    moved = of.width**2 + 2 * of.n_weights
    flops = 4.0 * of.n_weights * of.width
    return Amounts(tf32_flops=flops, memory_bytes=2.0 * FLOAT_BYTES * moved)


def dense_layer(model: str, n_tokens: int = N_TOKENS, length: int = LENGTH) -> Work:
    """A block of a dense model: forward for the Hessians, and for the states behind it."""
    dimensions = _dimensions(model)
    inputs = list(_inputs(dimensions))
    states = FLOAT_BYTES * n_tokens * dimensions.hidden_size
    passes = _total(forward(each, n_tokens, length) for each in inputs)
    passes += attention(dimensions, n_tokens, length)
    stages = {
        f"forward, {FORWARDS} passes": passes * FORWARDS,
        "Hessians": _total(statistics(each.width, n_tokens, length) for each in inputs),
        **_solving(inputs),
        "weights to the GPU": Amounts(pcie_bytes=BF16_BYTES * sum(i.n_weights for i in inputs)),
        # Read for each pass, written by the last.
        "states to the GPU and back": Amounts(pcie_bytes=float((FORWARDS + 1) * states)),
    }
    return Work(
        title=f"A layer of {model}",
        stages=stages,
        n_columns=sum(each.width for each in inputs),
        n_alike=dimensions.n_layers,
        all_alike=f"all {dimensions.n_layers} layers",
    )


def expert_batch(model: str, n_experts: int = BATCH_EXPERTS, n_tokens: int = N_TOKENS) -> Work:
    """Routed experts of a mixture, each on its share of the tokens and on a sample of all.

    down_proj is judged on the sample as well, so gate and up pass it, too (`r1_work`).
    """
    dimensions = _dimensions(model)
    moe = dimensions.moe
    assert moe is not None
    hidden, wide = dimensions.hidden_size, moe.expert_intermediate_size
    own = n_tokens * moe.n_experts_per_token / moe.n_routed_experts
    seen = own + SAMPLE_TOKENS
    read, middle = Input(width=hidden, rows=(wide, wide)), Input(width=wide, rows=(hidden,))
    inputs = [read, middle]
    passes = forward(read, seen, seen) + forward(read, own, own) + forward(middle, own, own)
    hessians = statistics(hidden, own, own) + statistics(wide, seen, seen)
    # Gathered for the statistics and for the pass, and added to the states behind it.
    moved = FLOAT_BYTES * hidden * (seen + 2 * own)
    stages = {
        f"forward, {FORWARDS} passes": passes,
        "Hessians": hessians,
        **_solving(inputs),
        "weights to the GPU": Amounts(pcie_bytes=FP8_BYTES * sum(i.n_weights for i in inputs)),
        "states to the GPU and back": Amounts(pcie_bytes=moved),
    }
    n_batches = (dimensions.n_layers - moe.n_dense_layers) * moe.n_routed_experts // n_experts
    return Work(
        title=f"A batch of {n_experts} experts of {model}",
        stages={name: amounts * n_experts for name, amounts in stages.items()},
        n_columns=(hidden + wide) * n_experts // GROUP,
        n_alike=n_batches,
        all_alike=f"all {n_batches} batches",
    )


def _solving(inputs: list[Input]) -> dict[str, Amounts]:
    return {
        "factors": _total(factor(each.width) for each in inputs),
        "column loop, inside blocks": _total(map(loop_inside, inputs)),
        "column loop, behind blocks": _total(map(loop_behind, inputs)),
        "layers' errors": _total(map(layer_error, inputs)),
    }


def _total(parts: Iterable[Amounts]) -> Amounts:
    return sum(parts, Amounts())


def _inputs(dimensions: ModelDimensions) -> Iterator[Input]:
    """Of the first block of a dense model."""
    architecture = architecture_of(dimensions.model_type)
    shapes = tensor_shapes(architecture, dimensions)
    for source in architecture.block_kind(0, dimensions).inputs:
        of = [shapes[architecture.tensor(0, f"{linear}.weight")] for linear in source.linears]
        yield Input(width=of[0][1], rows=tuple(rows for rows, _ in of))


def _dimensions(model: str) -> ModelDimensions:
    known = find_model(model)
    assert known is not None, model
    return known.dimensions
