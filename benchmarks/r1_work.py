"""What a calibrated export of DeepSeek-R1 computes, counted from its sizes.

Floating-point operations of matrix products (two a multiplication), per input of I columns with
linears of O rows in all that T tokens reach:

    forward           2 O I T
    Hessian           I (I + 256) T: the lower blocks of 256 rows
    factor            I^3: Cholesky I^3 / 3, and the inverse of its triangle by halves 2/3 I^3
    column loop       O I^2: each column corrects those after it, I / 2 on average
    report            4 O I^2: tr(D H D^T) of the error and of the weights
    AWQ search        2 R I^2 for each of 10 scales at most, on R <= 256 rows of each linear

and what elementwise work costs on a GPU, where each operation is a kernel: their number, and the
bytes that they read and write. Both are counts of ours by a dispatch mode (the tests repeat them).

Shape legend: O output rows, I input columns, T tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from tightfit.calib.architecture import architecture_of
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.family import BlockKind, Input
from tightfit.calib.logical import is_stack
from tightfit.calib.shapes import Shape, tensor_shapes
from tightfit.quant.algorithms.awq import AwqSettings
from tightfit.targets.job_needs import HEAD_ROWS, JUDGES

GROUP = 8
"""Experts that are solved together where memory allows it."""
SAMPLE_TOKENS = 512
"""Tokens of the block that every expert's down_proj is judged on as well."""
TRIANGLE_BLOCK = 256
"""Rows of a Hessian that are computed together, up to the diagonal."""
FLOAT_BYTES = 4
# Counted on Q4_K, the grid of `experts-q4_k`; Q8_0, its other grid, has fewer.
FIT_OPERATIONS = 920
"""Of fitting a matrix of up to 2^24 weights."""
FIT_WEIGHTS = 1 << 24
COLUMN_OPERATIONS = 16.1
"""Of a column in the loop, however many matrices are solved side by side."""
MATRIX_COLUMN_OPERATIONS = 0.2
"""Of a column for each of them."""
LOOP_BYTES = 3300
"""Read and written for each weight, the fit included."""
SCALES = 10
"""AWQ scales that are tried at most, of 21 steps."""
SCALE_OPERATIONS = 940
"""Of trying an AWQ scale on a linear's rows."""
SCALE_BYTES = 3000
"""Of the same for each weight of those rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Amounts that add up."""

    flops: float = 0.0
    """Of matrix products."""
    operations: float = 0.0
    """Elementwise operations, each a kernel of its own."""
    traffic_bytes: float = 0.0
    """Read and written by those."""
    copied_bytes: float = 0.0
    """Hidden states gathered, added and stored in host memory."""
    loaded_weights: float = 0.0
    """Read from the checkpoint and widened to float32."""

    def __add__(self, other: "Work") -> "Work":
        """Both."""
        names = [field.name for field in fields(self)]
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def __mul__(self, count: float) -> "Work":
        """So often."""
        return Work(**{field.name: getattr(self, field.name) * count for field in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibratedWork:
    """A whole calibrated export by who can do what."""

    passing: Work
    """States through trunks and experts: block after block, by the process that leads."""
    trunks: Work
    """Statistics and solving of what a block has beside routed experts: a task a block."""
    experts: Work
    """Statistics and solving of routed experts: 32 tasks a block for R1."""


def calibrated_work(dimensions: ModelDimensions, n_tokens: int, length: int) -> CalibratedWork:
    """Of AWQ then GPTQ on `n_tokens` in sequences of that length; embedding and head included."""
    architecture = architecture_of(dimensions.model_type)
    shapes = tensor_shapes(architecture, dimensions)
    passing = trunks = experts = Work()
    for layer in range(dimensions.n_layers):
        kind = architecture.block_kind(layer, dimensions)
        inside = {
            parameter: shapes[architecture.tensor(layer, parameter)]
            for parameter in kind.gguf_names
        }
        trunk_pass = trunk_forward(dimensions, inside, n_tokens, length)
        passing += trunk_pass
        trunks += trunk_pass + trunk_solve(dimensions, kind, inside, n_tokens)
        if any(map(is_stack, inside)):
            passing += experts_forward(dimensions, n_tokens)
            experts += experts_solve(dimensions, n_tokens)
    return CalibratedWork(
        passing=passing, trunks=trunks + _head(dimensions, n_tokens), experts=experts
    )


def trunk_forward(
    dimensions: ModelDimensions, inside: dict[str, Shape], n_tokens: int, length: int
) -> Work:
    """One pass through a block without its routed experts."""
    mla = dimensions.mla
    assert mla is not None
    weights = sum(
        math.prod(shape) for name, shape in inside.items() if len(shape) > 1 and not is_stack(name)
    )
    # Scores and their sum of values for all pairs: the mask saves nothing in the library's kernel.
    pair = 2 * dimensions.n_heads * (dimensions.head_dim + mla.v_head_dim)
    states = FLOAT_BYTES * n_tokens * dimensions.hidden_size
    return Work(
        flops=n_tokens * (2.0 * weights + pair * length),
        copied_bytes=3 * states,
        loaded_weights=weights,
    )


def experts_forward(dimensions: ModelDimensions, n_tokens: int) -> Work:
    """All tokens through the routed experts that they visit."""
    moe = dimensions.moe
    assert moe is not None
    matrix = moe.expert_intermediate_size * dimensions.hidden_size
    visits = n_tokens * moe.n_experts_per_token
    # Tokens are gathered (read, written), results added (both read, one written).
    return Work(
        flops=2.0 * 3 * matrix * visits,
        copied_bytes=5.0 * FLOAT_BYTES * visits * dimensions.hidden_size,
        loaded_weights=3.0 * matrix * moe.n_routed_experts,
    )


def trunk_solve(
    dimensions: ModelDimensions, kind: BlockKind, inside: dict[str, Shape], n_tokens: int
) -> Work:
    """Hessians of a block's own inputs, their AWQ scales, GPTQ of what reads them."""
    work = Work()
    for source in kind.inputs:
        shapes = [inside[f"{linear}.weight"] for linear in source.linears if not is_stack(linear)]
        if not shapes:
            continue
        if source.name == "q_nope":  # each head reads its own part
            ((n_heads, n_rows, width),) = shapes
            work += (hessian(width, n_tokens) + solve([n_rows], width)) * n_heads
            continue
        width = shapes[0][-1]
        rows = [math.prod(shape[:-1]) for shape in shapes]
        work += hessian(width, n_tokens) + solve(rows, width)
        work += search_scale(rows + _judges(dimensions, source), width)
    return work


def experts_solve(dimensions: ModelDimensions, n_tokens: int) -> Work:
    """All routed experts of a block: statistics on their tokens, AWQ of down_proj, GPTQ."""
    moe = dimensions.moe
    assert moe is not None
    wide, hidden = moe.expert_intermediate_size, dimensions.hidden_size
    own = n_tokens * moe.n_experts_per_token / moe.n_routed_experts
    one = expert_statistics(hidden, wide, own, SAMPLE_TOKENS) + search_scale([hidden], wide)
    one += solve([wide, wide], hidden, side_by_side=GROUP) + solve(
        [hidden], wide, side_by_side=GROUP
    )
    copied = Work(
        copied_bytes=2.0 * FLOAT_BYTES * (own + SAMPLE_TOKENS) * hidden,
        loaded_weights=3.0 * wide * hidden,
    )
    return (one + copied) * moe.n_routed_experts


def expert_statistics(hidden: int, wide: int, own_tokens: float, sample_tokens: int) -> Work:
    """Hessians of both inputs of an expert, and what its down_proj reads."""
    seen = own_tokens + sample_tokens
    middle = Work(flops=2.0 * 2 * hidden * wide * seen)
    return middle + hessian(hidden, own_tokens) + hessian(wide, seen)


def hessian(width: int, n_tokens: float) -> Work:
    """X^T X of an input."""
    columns = width + min(width, TRIANGLE_BLOCK)
    return Work(flops=float(width) * columns * n_tokens)


def solve(rows: Sequence[int], width: int, side_by_side: int = 1) -> Work:
    """GPTQ of the linears that read one input, as one of `side_by_side` that share a loop."""
    n_rows, squared = sum(rows), float(width) ** 2
    fits = math.ceil(n_rows * width / FIT_WEIGHTS)
    column = COLUMN_OPERATIONS / side_by_side + MATRIX_COLUMN_OPERATIONS
    return Work(
        flops=squared * width + 5 * n_rows * squared,
        operations=FIT_OPERATIONS * fits + column * width,
        traffic_bytes=float(LOOP_BYTES) * n_rows * width,
    )


def search_scale(rows: Sequence[int], width: int) -> Work:
    """An AWQ scale for linears of these rows."""
    max_rows = AwqSettings().max_rows
    assert max_rows is not None
    sampled = sum(min(count, max_rows) for count in rows)
    return Work(
        flops=2.0 * SCALES * sampled * width**2,
        operations=float(SCALES * SCALE_OPERATIONS * len(rows)),
        traffic_bytes=float(SCALES * SCALE_BYTES) * sampled * width,
    )


def _judges(dimensions: ModelDimensions, source: Input) -> list[int]:
    """Rows of the experts' matrices that judge the scale of their common input."""
    moe = dimensions.moe
    if moe is None or source.name != "mlp_in" or not any(map(is_stack, source.linears)):
        return []
    return [moe.expert_intermediate_size] * 2 * min(JUDGES, moe.n_routed_experts)


def _head(dimensions: ModelDimensions, n_tokens: int) -> Work:
    """The head, some rows at a time, each time with a factor of its own."""
    width = dimensions.hidden_size
    work = hessian(width, n_tokens) + Work(loaded_weights=float(dimensions.vocab_size * width))
    for start in range(0, dimensions.vocab_size, HEAD_ROWS):
        work += solve([min(HEAD_ROWS, dimensions.vocab_size - start)], width)
    return work
