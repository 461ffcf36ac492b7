"""Quantize some routed experts of a block, each on the tokens that the router sends it.

An expert's loss is weighted by the router: a token of weight w adds w**2 times its outer product to
the Hessian, since its error is multiplied by w before it is added. Experts that few tokens visit
have a Hessian of low rank, which says nothing of the directions that they happened not to see, so
it is shrunk towards that of the whole block (`quant.algorithms.shrinkage`): for gate and up the
Hessian of all tokens, for down that of a sample of the block's tokens sent through the expert. An
expert that no token visits has these alone.

Experts of a group are of one shape and are solved together.

Shape legend: E experts, O output rows, I input columns, T tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tightfit.calib.experts import gate_up
from tightfit.calib.hidden import BATCH_TOKENS, HiddenStates
from tightfit.calib.precision import products_in
from tightfit.pipeline.job import LinearReport, PackedTensor
from tightfit.pipeline.quantize import Method, linear_report
from tightfit.pipeline.routed import ExpertsPrior, Routed
from tightfit.quant.algorithms.awq import search_scale
from tightfit.quant.algorithms.gptq import GptqResult, solve_shared_batch
from tightfit.quant.algorithms.hessian import HessianAccumulator, InputStatistics
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.algorithms.shrinkage import shrink
from tightfit.quant.grid import Grid
from tightfit.quant.tensor import QuantizedTensor

_Codes = tuple[QuantizedTensor, GptqResult | None]
_SAMPLE_TOKENS = 512
"""Tokens of the block that every expert's down_proj is judged on as well."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tokens:
    """The block's tokens as its experts read them."""

    states: HiddenStates
    divisor_I: Tensor | None
    """AWQ scale that they are still to be divided by; None: the norm before them did it."""

    def rows(self, rows_T: Tensor | slice, device: torch.device) -> Tensor:
        """float32 (T, I)."""
        x_TI = self.states.rows(rows_T).to(device)
        return x_TI if self.divisor_I is None else x_TI.div_(self.divisor_I)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Expert:
    """One expert before quantization."""

    number: int
    weights: Mapping[str, Tensor]
    """float32 by name in `EXPERT_STACKS`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedExpert:
    """One expert after it, by name in `EXPERT_STACKS`."""

    packed: Mapping[str, PackedTensor]
    reports: Mapping[str, LinearReport]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Seen:
    """Statistics of one input of an expert."""

    statistics: InputStatistics
    own_share: float
    n_tokens: int


def quantize_experts(
    experts: Sequence[Expert],
    routed: Routed,
    tokens: Tokens,
    prior: ExpertsPrior,
    grids: Mapping[str, Grid],
    method: Method,
) -> list[QuantizedExpert]:
    """Quantize a group; `grids` are by name, without those of matrices that stay floats."""
    inputs: list[_Seen] = []
    middles: list[_Seen] = []
    scaled: list[dict[str, Tensor]] = []
    for expert in experts:
        weights = dict(expert.weights)
        if prior.scale_I is not None:
            for name in ("gate_proj", "up_proj"):
                weights[name] = weights[name] * prior.scale_I
        with products_in(method.precision):
            seen, middle = _statistics(weights, routed, expert.number, tokens, prior)
        if method.scales and {"up_proj", "down_proj"} <= grids.keys():
            middle = _fold_middle(weights, middle, grids["down_proj"])
        inputs.append(seen)
        middles.append(middle)
        scaled.append(weights)
    read_input = _choose_codes(scaled, inputs, ("gate_proj", "up_proj"), grids, method)
    read_middle = _choose_codes(scaled, middles, ("down_proj",), grids, method)
    return [
        _result(
            read_input[place] | read_middle[place],
            scaled[place],
            {"gate_proj": inputs[place], "up_proj": inputs[place], "down_proj": middles[place]},
            grids,
            method,
        )
        for place in range(len(experts))
    ]


def _statistics(
    weights: Mapping[str, Tensor],
    routed: Routed,
    number: int,
    tokens: Tokens,
    prior: ExpertsPrior,
) -> tuple[_Seen, _Seen]:
    """Of what gate and up read, and of what down reads."""
    gate_OI, up_OI = weights["gate_proj"], weights["up_proj"]
    device = gate_OI.device
    rows_T, weights_T = routed.of(number)
    input_, middle = (HessianAccumulator(width, device) for width in (gate_OI.shape[1], len(up_OI)))
    for start in range(0, len(rows_T), BATCH_TOKENS):
        part = slice(start, start + BATCH_TOKENS)
        x_TI = tokens.rows(rows_T[part], device)
        squared_T = weights_T[part].square().to(device)
        input_.add(x_TI, squared_T)
        middle.add(gate_up(gate_OI, up_OI, x_TI), squared_T)
    everywhere = HessianAccumulator(len(up_OI), device)
    n_tokens = sum(tokens.states.lengths)
    step = max(1, n_tokens // _SAMPLE_TOKENS)
    everywhere.add(gate_up(gate_OI, up_OI, tokens.rows(slice(0, None, step), device)))
    return (
        _shrunk(input_, prior.statistics, len(rows_T)),
        _shrunk(middle, everywhere.statistics(), len(rows_T)),
    )


def _shrunk(own: HessianAccumulator, whole: InputStatistics, n_tokens: int) -> _Seen:
    found = shrink(own.statistics() if own.n_tokens else None, whole)
    return _Seen(statistics=found.statistics, own_share=found.own_share, n_tokens=n_tokens)


def _fold_middle(weights: dict[str, Tensor], middle: _Seen, grid: Grid) -> _Seen:
    """Fold an AWQ scale of down_proj's input into up_proj's rows, in place."""
    seen = middle.statistics
    found = search_scale({"": weights["down_proj"]}, seen.hessian_II, seen.abs_mean_I, {"": grid})
    weights["down_proj"] = weights["down_proj"] * found.scale_I
    weights["up_proj"] = weights["up_proj"] / found.scale_I[:, None]
    return replace(middle, statistics=seen.scaled(found.scale_I))


def _choose_codes(
    experts: Sequence[Mapping[str, Tensor]],
    seen: Sequence[_Seen],
    names: Sequence[str],
    grids: Mapping[str, Grid],
    method: Method,
) -> list[dict[str, _Codes]]:
    """Codes of the matrices that read one input, for each expert."""
    batch = [{name: weights[name] for name in names if name in grids} for weights in experts]
    if method.compensates:
        hessians_EII = [of.statistics.hessian_II for of in seen]
        solved = solve_shared_batch(batch, hessians_EII, grids, method.gptq)
        return [{name: (of.tensor, of) for name, of in found.items()} for found in solved]
    return [
        {
            name: (rtn(w_OI, grids[name], of.statistics.importance_I), None)
            for name, w_OI in weights.items()
        }
        for weights, of in zip(batch, seen, strict=True)
    ]


def _result(
    tensors: Mapping[str, _Codes],
    weights: Mapping[str, Tensor],
    seen: Mapping[str, _Seen],
    grids: Mapping[str, Grid],
    method: Method,
) -> QuantizedExpert:
    reports = {}
    for name, (tensor, solved) in tensors.items():
        difference_OI = grids[name].dequantize(tensor) - weights[name]
        of = seen[name]
        report = linear_report(
            name, weights[name], difference_OI, of.statistics, solved, method.precision
        )
        reports[name] = replace(report, tokens=of.n_tokens, own_share=of.own_share)
    packed = {name: PackedTensor.pack(tensor) for name, (tensor, _) in tensors.items()}
    return QuantizedExpert(packed=packed, reports=reports)
