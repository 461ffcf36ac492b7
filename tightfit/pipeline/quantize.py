"""Quantize one unit of a model: choose the algorithm, apply it to every linear, say how it went.

Matrices of single heads (latent attention) are flattened to rows when they read one input, and
solved head by head when each reads its own.

Shape legend: O output rows, I input columns, H heads, V vocabulary, D hidden width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from torch import Tensor

from tightfit.calib.family import BlockKind
from tightfit.calib.precision import Precision, products_in
from tightfit.calib.transfer import to_device
from tightfit.pipeline.collect import BlockStatistics
from tightfit.pipeline.fold import Scales, fold_scales
from tightfit.pipeline.job import LinearReport, PackedTensor, UnitResult
from tightfit.quant.algorithms.activation_scales import static_activation_scale
from tightfit.quant.algorithms.gptq import GptqResult, GptqSettings, solve_batch, solve_shared
from tightfit.quant.algorithms.hessian import InputStatistics, output_error
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.grid import Grid
from tightfit.quant.grids.float8 import Float8Grid
from tightfit.quant.tensor import QuantizedTensor
from tightfit.targets.job_needs import HEAD_ROWS


class Algorithm(StrEnum):
    """How codes are chosen."""

    RTN = "rtn"
    """Round to nearest, parameters fitted under the importance matrix."""
    GPTQ = "gptq"
    AWQ = "awq"
    """AWQ scales, then round to nearest."""
    AWQ_GPTQ = "awq-gptq"
    """AWQ scales, then GPTQ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """An algorithm and its settings."""

    algorithm: Algorithm = Algorithm.AWQ_GPTQ
    """The default has the lowest KL divergence in nearly every row of docs/quality.md."""
    gptq: GptqSettings = field(default_factory=GptqSettings)
    from_original: bool = False
    """Whether each block is calibrated on the original model's states instead of the quantized
    one's: blocks do not wait for each other then."""
    precision: Precision = Precision.MEDIUM
    """Of the passes through the blocks, the Hessians and the reports; what chooses codes is
    float32."""
    static_inputs: bool = False
    """Whether the inputs of FP8 linears get a static scale (W8A8); else only weights are FP8."""

    kv_scales: bool = False
    """Whether the range of keys and values is measured, for an FP8 KV cache."""

    @property
    def scales(self) -> bool:
        """Whether AWQ scales are folded first."""
        return self.algorithm in (Algorithm.AWQ, Algorithm.AWQ_GPTQ)

    @property
    def compensates(self) -> bool:
        """Whether GPTQ chooses the codes."""
        return self.algorithm in (Algorithm.GPTQ, Algorithm.AWQ_GPTQ)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedBlock:
    """A block after quantization, by parameter path inside the block."""

    packed: Mapping[str, PackedTensor]
    values: Mapping[str, Tensor]
    """float32 parameters: dequantized matrices, norms and biases."""
    reports: tuple[LinearReport, ...]
    statistics: BlockStatistics
    """As they hold after folding."""
    scales: Scales
    """AWQ scales by input."""

    def unit(self, prefix: str) -> UnitResult:
        """The unit to store, by checkpoint name."""
        plain = {name: value for name, value in self.values.items() if name not in self.packed}
        return UnitResult(
            quantized={prefix + name: tensor for name, tensor in self.packed.items()},
            plain={prefix + name: value for name, value in plain.items()},
            reports=tuple(replace(report, name=prefix + report.name) for report in self.reports),
        )


def quantize_block(
    kind: BlockKind,
    parameters: Mapping[str, Tensor],
    statistics: BlockStatistics,
    grids: Mapping[str, Grid],
    method: Method,
    *,
    plain_dtype: torch.dtype,
    n_heads: int,
    n_kv_heads: int,
    judges: Mapping[str, Tensor] | None = None,
) -> QuantizedBlock:
    """Quantize the linears of a block under the statistics of their inputs.

    What has no grid (norms, biases) is rounded to `plain_dtype`, as the artifacts store it; what
    chooses experts is left as it is. `judges` are weights that share an input and are quantized
    elsewhere (some routed experts): a scale must be good for them too.
    """
    values = dict(parameters)
    flat = _flattened(kind, values, statistics)
    for name in flat:
        values[name] = values[name].flatten(0, 1)
    scales: Scales = {}
    if method.scales:
        values, statistics, scales = fold_scales(
            kind,
            values | dict(judges or {}),
            statistics,
            grids,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
        )
        values = {name: values[name] for name in parameters}
    for name in values.keys() - grids.keys() - kind.routing:
        values[name] = values[name].to(plain_dtype).float()
    packed: dict[str, PackedTensor] = {}
    reports: list[LinearReport] = []
    for source in kind.inputs:
        names = [f"{linear}.weight" for linear in source.linears]
        weights = {name: values[name] for name in names if name in grids and name in values}
        if not weights:
            continue
        seen = statistics[source.name]
        if not isinstance(seen, InputStatistics):
            (name,) = weights
            packed[name], values[name], report = _quantize_heads(
                name, weights[name], seen, grids[name], method
            )
            reports.append(report)
            continue
        for name, tensor, report in quantize_shared(weights, seen, grids, method):
            values[name] = grids[name].dequantize(tensor)
            packed[name] = PackedTensor.pack(tensor, _input_scale(grids[name], seen, method))
            reports.append(report)
    for name in flat:
        values[name] = values[name].reshape(parameters[name].shape)
    return QuantizedBlock(
        packed=packed,
        values=values,
        reports=tuple(reports),
        statistics=statistics,
        scales=scales,
    )


def quantize_head(
    name: str, w_VD: Tensor, statistics: InputStatistics, grid: Grid, method: Method
) -> UnitResult:
    """Quantize the output head (or the embedding tied to it), some rows at a time."""
    parts: list[PackedTensor] = []
    error = energy = 0.0
    damp: float | None = None
    input_scale = _input_scale(grid, statistics, method)
    for rows_OI in _row_chunks(w_VD, grid):
        w_OI = to_device(rows_OI, statistics.hessian_II.device).float()
        tensor, solved = _choose_codes({name: w_OI}, statistics, {name: grid}, method)[name]
        damp = solved.damp_fraction if solved else None
        error += output_error(grid.dequantize(tensor) - w_OI, statistics.hessian_II)
        energy += output_error(w_OI, statistics.hessian_II)
        parts.append(PackedTensor.pack(tensor, input_scale))
    report = LinearReport(
        name=name,
        relative_error=error / energy if energy else 0.0,
        damp=damp,
        dead_columns=int((statistics.importance_I == 0).sum()),
    )
    return UnitResult(quantized={name: join_rows(parts)}, plain={}, reports=(report,))


def quantize_rounded(
    name: str, w_OI: Tensor, grid: Grid, importance_I: Tensor | None = None
) -> UnitResult:
    """Round a matrix that no calibration describes (the embedding), some rows at a time."""
    parts = [
        PackedTensor.pack(rtn(rows_OI.float(), grid, importance_I))
        for rows_OI in _row_chunks(w_OI, grid)
    ]
    return UnitResult(quantized={name: join_rows(parts)}, plain={})


def join_rows(parts: Sequence[PackedTensor]) -> PackedTensor:
    """Row chunks of one matrix, which share the order of their columns."""
    data = torch.cat([part.data.cpu() for part in parts])
    return replace(parts[0], shape=(len(data), parts[0].shape[1]), data=data)


def _row_chunks(w_OI: Tensor, grid: Grid) -> Sequence[Tensor]:
    """Rows that can be quantized by themselves: all at once where rows share parameters."""
    return torch.split(w_OI, len(w_OI) if grid.rows_share_params else HEAD_ROWS)


def quantize_shared(
    weights: Mapping[str, Tensor],
    statistics: InputStatistics,
    grids: Mapping[str, Grid],
    method: Method,
) -> Iterator[tuple[str, QuantizedTensor, LinearReport]]:
    """Quantize the linears that read one input; yields name, tensor and report of each."""
    for name, (tensor, solved) in _choose_codes(weights, statistics, grids, method).items():
        difference_OI = grids[name].dequantize(tensor) - weights[name]
        report = linear_report(
            name, weights[name], difference_OI, statistics, solved, method.precision
        )
        yield name, tensor, report


def linear_report(
    name: str,
    w_OI: Tensor,
    difference_OI: Tensor,
    statistics: InputStatistics,
    solved: GptqResult | None,
    precision: Precision,
) -> LinearReport:
    """How well a linear was quantized: weights off by `difference_OI`."""
    with products_in(precision):
        energy = output_error(w_OI, statistics.hessian_II)
        error = output_error(difference_OI, statistics.hessian_II)
    return LinearReport(
        name=name,
        relative_error=error / energy if energy else 0.0,
        damp=solved.damp_fraction if solved else None,
        dead_columns=int((statistics.importance_I == 0).sum()),
    )


def _flattened(
    kind: BlockKind, values: Mapping[str, Tensor], statistics: BlockStatistics
) -> list[str]:
    """Matrices of heads that all read one input: for every purpose here they are its rows."""
    shared = [item for item in kind.inputs if isinstance(statistics[item.name], InputStatistics)]
    names = {f"{linear}.weight" for item in shared for linear in item.linears}
    return [name for name, value in values.items() if value.ndim == 3 and name in names]


def _quantize_heads(
    name: str,
    w_HOI: Tensor,
    statistics: Sequence[InputStatistics],
    grid: Grid,
    method: Method,
) -> tuple[PackedTensor, Tensor, LinearReport]:
    """Quantize a matrix whose heads read each their own input; packed as rows of all heads."""
    tensors: list[QuantizedTensor]
    damp: float | None = None
    if method.compensates:
        hessians_HII = torch.stack([seen.hessian_II for seen in statistics])
        solved = solve_batch(w_HOI, hessians_HII, grid, method.gptq)
        tensors = [result.tensor for result in solved]
        damp = max(result.damp_fraction for result in solved)
    else:
        tensors = [
            rtn(w_OI, grid, seen.importance_I) for w_OI, seen in zip(w_HOI, statistics, strict=True)
        ]
    values_HOI = torch.stack([grid.dequantize(tensor) for tensor in tensors])
    error = energy = 0.0
    for w_OI, value_OI, seen in zip(w_HOI, values_HOI, statistics, strict=True):
        error += output_error(value_OI - w_OI, seen.hessian_II)
        energy += output_error(w_OI, seen.hessian_II)
    report = LinearReport(
        name=name,
        relative_error=error / energy if energy else 0.0,
        damp=damp,
        dead_columns=sum(int((seen.importance_I == 0).sum()) for seen in statistics),
    )
    packed = join_rows([PackedTensor.pack(tensor) for tensor in tensors])
    return packed, values_HOI, report


def _choose_codes(
    weights: Mapping[str, Tensor],
    statistics: InputStatistics,
    grids: Mapping[str, Grid],
    method: Method,
) -> dict[str, tuple[QuantizedTensor, GptqResult | None]]:
    if method.compensates:
        solved = solve_shared(
            weights, statistics.hessian_II, {name: grids[name] for name in weights}, method.gptq
        )
        return {name: (result.tensor, result) for name, result in solved.items()}
    return {
        name: (rtn(w_OI, grids[name], statistics.importance_I), None)
        for name, w_OI in weights.items()
    }


def _input_scale(grid: Grid, statistics: InputStatistics, method: Method) -> float | None:
    if not method.static_inputs or not isinstance(grid, Float8Grid):
        return None
    return static_activation_scale(float(statistics.abs_max_I.max())).scale
