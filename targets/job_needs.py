"""What a job will need, before it starts: memory of a worker, room for its scratch files, output.

From sizes alone. The memory is that of the largest step: solving a block's trunk, a group of
experts, or a piece of the head; each is the sum of what it holds at once. `docs/scale.md` holds the
prediction beside measured peaks.

Shape legend: I input columns of a linear, O its output rows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tightfit.calib.architecture import architecture_of
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.family import BlockKind
from tightfit.calib.logical import is_stack
from tightfit.calib.shapes import Shape, tensor_shapes
from tightfit.errors import UsageError
from tightfit.targets.grids import FLOAT_BYTES
from tightfit.targets.memory_use import size_text
from tightfit.targets.plan import Plan

PROCESS_BYTES = 350 << 20
"""Python with torch, a model of transformers and the compiled kernels, before any weight (measured,
without mapped files)."""
_ROUNDING_PROCESS_BYTES = 235 << 20
"""The same without the model, which rounding alone does not need."""
_STREAMING_PROCESS_BYTES = 410 << 20
"""The same with the compiled kernels and what writes and reads a GGUF (measured)."""
_STREAMING_THREAD_BYTES = 96 << 20
"""A thread that rounds a piece of 2M weights, with its finished pieces that wait (measured)."""
_USUAL_THREADS = 8
"""Of a machine that nobody has named."""
EXPERTS_PER_UNIT = 8
"""Routed experts in one unit of work: what an interruption can lose, in a file of 200 MB for R1. Of
these as many are solved together as memory allows."""
JUDGES = 8
"""Routed experts that the AWQ scale of their common input is judged by, evenly spaced."""
HEAD_ROWS = 16384
"""Rows of the head solved at a time: its 152k rows at once would need several copies of 1 GB."""
DEFAULT_TOKENS = 128 * 2048
"""Of a calibration as `export` makes it unless told otherwise, at most."""
_BATCH_TOKENS = 2048
"""Of a batch: the longest sequence that is calibrated on unless told otherwise, which is a batch by
itself (`calib.hidden`)."""
_FLOAT = 4
_SEARCH_COPIES = 4
"""float32 copies of the rows at hand that the search for a grid's parameters holds at once."""
_SOLVE_COPIES = 4
"""float32 copies of the weights that a column loop holds: input, transposed, fit, result."""
_FACTOR_COPIES = 5
"""float32 copies of a Hessian while it is factored, beside itself: permuted, damped, factor, its
inverse, and what the library needs."""
_HEAD_COPIES = 4
"""float32 copies of the keys' or the values' heads of latent attention, of which both are kept."""
_ACTIVATION_COPIES = 4
"""Of the widest activation in a block, while a batch passes."""
_ROWS_AT_ONCE = 4096
"""Of all matrices in one column loop (`quant.algorithms.gptq`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobNeeds:
    """Predicted, in bytes."""

    peak_memory_bytes: int
    """Of one worker process; file pages that the system may drop at any time are not counted."""
    scratch_bytes: int
    """In the job's folder at most."""
    output_bytes: int
    """Tensor data of all artifacts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSize:
    """What the prediction depends on."""

    dimensions: ModelDimensions
    storage: Mapping[str, str]
    """Grid or float type by logical name."""
    compensates: bool
    """Whether GPTQ chooses the codes."""
    scales: bool
    """Whether AWQ scales are searched."""
    n_tokens: int | None
    """Of the calibration; None: rounding without one."""
    streamed: bool
    """Whether weights are rounded while they are written, which needs no scratch files."""

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of all tensors."""
        return tensor_shapes(architecture_of(self.dimensions.model_type), self.dimensions)


def fitting_group(job: JobSize, max_memory_bytes: int | None) -> int:
    """Most experts that a task can solve together; raises `UsageError` when one is too many."""
    moe = job.dimensions.moe
    most = min(EXPERTS_PER_UNIT, moe.n_routed_experts) if moe else 1
    if max_memory_bytes is None:
        return most
    sizes = [size for size in (most, most // 2, most // 4, 1) if size >= 1]
    for size in sizes:
        if peak_memory_bytes(job, size) <= max_memory_bytes:
            return size
    raise UsageError(
        f"--max-memory {size_text(max_memory_bytes)} is too little for this model",
        allowed=f"{size_text(peak_memory_bytes(job, 1))} or more, with this method and calibration",
        hint="--method rtn --calib none needs the least; or take a machine with more memory",
    )


def peak_memory_bytes(job: JobSize, experts_at_once: int) -> int:
    """Memory of one worker."""
    if job.streamed:
        return streaming_memory_bytes(job, 1)
    if job.n_tokens is None:
        return _ROUNDING_PROCESS_BYTES + max(_converting(job), _head(job))
    architecture, dimensions = architecture_of(job.dimensions.model_type), job.dimensions
    steps = [_head(job)]
    kinds = {
        id(kind): (kind, layer)
        for layer in reversed(range(dimensions.n_layers))
        for kind in [architecture.block_kind(layer, dimensions)]
    }
    for kind, layer in kinds.values():
        shapes = {
            parameter: job.shapes[architecture.tensor(layer, parameter)]
            for parameter in kind.gguf_names
            if architecture.tensor(layer, parameter) in job.shapes
        }
        steps.append(_trunk(kind, shapes, job))
        if any(map(is_stack, shapes)):
            steps.append(_experts(job, experts_at_once))
    return PROCESS_BYTES + max(steps)


def streaming_memory_bytes(job: JobSize, threads: int) -> int:
    """Memory of a conversion in one pass: pieces in hand, and heads that are loaded together."""
    heads = [shape for name, shape in job.shapes.items() if len(shape) == 3 and not is_stack(name)]
    loaded = _HEAD_COPIES * max(map(math.prod, heads), default=0)
    return _STREAMING_PROCESS_BYTES + threads * _STREAMING_THREAD_BYTES + _FLOAT * loaded


def _trunk(kind: BlockKind, shapes: Mapping[str, Shape], job: JobSize) -> int:
    """A block without routed experts: the pass that collects statistics, or the widest solve."""
    inputs = [
        [shapes[f"{linear}.weight"] for linear in source.linears if not is_stack(linear)]
        for source in kind.inputs
    ]
    weights = sum(math.prod(shape) for read in inputs for shape in read)
    hessians = sum(_hessian(read[0]) for read in inputs if read)
    solve = max(
        _SOLVE_COPIES * sum(map(math.prod, read))
        + (_FACTOR_COPIES * _hessian(read[0]) if job.compensates else 0)
        for read in inputs
        if read
    )
    copies = 2 if job.scales else 1
    moe = job.dimensions.moe
    if moe is not None and job.scales:
        weights += 2 * JUDGES * moe.expert_intermediate_size * job.dimensions.hidden_size
    collecting = weights + hessians + _activations(job)
    solving = (copies + 1) * weights + copies * hessians + solve
    return _FLOAT * max(collecting, solving)


def _experts(job: JobSize, group: int) -> int:
    """A group of experts: weights, statistics of both inputs, and as many as are solved at once."""
    moe = job.dimensions.moe
    assert moe is not None
    wide, hidden = moe.expert_intermediate_size, job.dimensions.hidden_size
    matrix = wide * hidden
    one = 3 * matrix * (2 if job.scales else 1) + hidden**2 + wide**2
    solved = min(group, max(1, _ROWS_AT_ONCE // (2 * wide)))
    solve = solved * _SOLVE_COPIES * 2 * matrix
    if job.compensates:
        solve += (solved + _FACTOR_COPIES) * hidden**2
    return _FLOAT * int(group * one + hidden**2 + solve + _tokens(job) * (hidden + 3 * wide))


def _activations(job: JobSize) -> int:
    """A batch of tokens on its way through a block."""
    dimensions = job.dimensions
    widest = max(dimensions.intermediate_size, 2 * dimensions.q_width, dimensions.hidden_size)
    return _tokens(job) * _ACTIVATION_COPIES * widest


def _tokens(job: JobSize) -> int:
    return min(job.n_tokens or 0, _BATCH_TOKENS)


def _converting(job: JobSize) -> int:
    """Rounding without calibration: the largest matrix, and the packed results of its unit."""
    single = [shape for name, shape in job.shapes.items() if len(shape) > 1 and not is_stack(name)]
    matrices = [math.prod(shape) for shape in single]
    packed = 0
    moe = job.dimensions.moe
    if moe is not None:
        matrix = moe.expert_intermediate_size * job.dimensions.hidden_size
        matrices.append(matrix)
        packed = 3 * matrix * EXPERTS_PER_UNIT
    rows = min(max(matrices), HEAD_ROWS * job.dimensions.hidden_size)
    return _FLOAT * (max(matrices) + _SEARCH_COPIES * rows) + packed


def _head(job: JobSize) -> int:
    """Some rows of the head at a time."""
    dimensions = job.dimensions
    rows = min(HEAD_ROWS, dimensions.vocab_size)
    weights = dimensions.vocab_size * dimensions.hidden_size
    calibrated = job.n_tokens is not None and job.compensates
    copies = _SOLVE_COPIES if calibrated else _SEARCH_COPIES
    factor = _FACTOR_COPIES * dimensions.hidden_size**2 if calibrated else 0
    return weights * 2 + _FLOAT * (copies * rows * dimensions.hidden_size + factor)


def scratch_bytes(job: JobSize, stored_bytes: int, n_open_blocks: int = 1) -> int:
    """Room for finished units and for the states of blocks that are worked on at once."""
    if job.streamed or not any(kind not in FLOAT_BYTES for kind in job.storage.values()):
        return 0
    n_tokens = job.n_tokens or 0
    states = _FLOAT * n_tokens * job.dimensions.hidden_size
    # Of each block those that enter it, of a mixture the trunk's and what its experts read.
    per_block = 3 if job.dimensions.moe else 1
    return stored_bytes + states * (1 + per_block * n_open_blocks)


def export_needs(plan: Plan) -> dict[str, JobNeeds]:
    """Of exporting one plan, calibrated as `export` does it unless told otherwise, and without."""
    kinds = {
        "with calibration": (True, DEFAULT_TOKENS),
        "without calibration": (False, None),
    }
    needs = {}
    for name, (calibrated, n_tokens) in kinds.items():
        size = JobSize(
            dimensions=plan.setting.dimensions,
            storage=plan.storage,
            compensates=calibrated,
            scales=calibrated,
            n_tokens=n_tokens,
            streamed=not calibrated and plan.format == "gguf",
        )
        needs[name] = JobNeeds(
            peak_memory_bytes=streaming_memory_bytes(size, _USUAL_THREADS)
            if size.streamed
            else peak_memory_bytes(size, fitting_group(size, None)),
            scratch_bytes=scratch_bytes(size, plan.chosen.file_bytes),
            output_bytes=plan.chosen.file_bytes,
        )
    return needs


def needs_text(needs: JobNeeds) -> str:
    """One line."""
    return (
        f"needs about {size_text(needs.peak_memory_bytes)} of memory a worker, "
        f"{size_text(needs.scratch_bytes)} of scratch disk, {size_text(needs.output_bytes)} for "
        "the result"
    )


def _hessian(shape: Shape) -> int:
    return math.prod(shape[:-2]) * shape[-1] ** 2 if len(shape) > 2 else shape[-1] ** 2
