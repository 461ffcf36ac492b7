r"""The gradients of a block's linears under the Fisher metric of the model's output.

KL divergence is to second order a quadratic form: with F_t = diag(p) - p p^T of token t's
probabilities p and a change delta_t of its logits,

    KL_t = 1/2 delta_t^T F_t delta_t = 1/2 E[(g_t . delta_t)^2],   g_t = sqrt(p) z - p (sqrt(p) . z)

for any random z of independent entries of mean 0 and variance 1, since E[g g^T] = F. (A label
drawn from p, less p, has the same covariance; random signs have far less variance where the
model is sure.) With G the gradient of sum_t g_t . logits_t to a weight matrix, over one sequence,

    sum over tokens of KL = 1/2 E[<G, D>^2]

for a small error D of that matrix: tokens do not mix, because their z are independent. We drop
what couples different rows of D, whose rounding errors are close to independent:

    sum over tokens of KL ~ 1/2 sum_o E[(G_o . D_o)^2]

This is the Fisher block of each row, exact in tokens and columns. K-FAC (Martens and Grosse 2015)
would factor it into E[g_o^2] x^T x, which overrates tokens of huge activation and no consequence.

Shape legend: B sequences of a batch, T padded length, D hidden width, I input and O output columns
of a linear, S sampled rows, Q sequences (each counted once per draw of z).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tightfit.calib.architecture import Input
from tightfit.calib.decoder import Decoder
from tightfit.calib.hidden import HiddenStates
from tightfit.quant.algorithms.hessian import HessianAccumulator, InputStatistics

GRADIENT_BATCH_TOKENS = 1024
"""Padded tokens of a batch: autograd keeps all activations of a block for them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LinearScores:
    """Gradients of one linear."""

    rows_S: Tensor
    """int64: the sampled rows."""
    gradient_QSI: Tensor
    """float32: G of those rows, for every sequence and draw."""
    power_O: Tensor
    """float32: mean over tokens and draws of the squared gradient of each output."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlockScores:
    """Gradients of a block's linears, and statistics of what they read."""

    statistics: Mapping[str, InputStatistics]
    """By the input's name."""
    linears: Mapping[str, LinearScores]
    """By module path."""


class _Watch:
    """Collects the gradients of one linear."""

    def __init__(self, rows_S: Tensor) -> None:
        self._rows_S = rows_S
        self._x_BTI = torch.empty(0)
        self._power_O = torch.zeros(())
        self._gradients: list[Tensor] = []

    def forward(self, _module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        self._x_BTI = arguments[0].detach()
        register: Any = output.register_hook
        register(self._backward)

    def _backward(self, gradient_BTO: Tensor) -> None:
        self._power_O = self._power_O.to(gradient_BTO.device) + gradient_BTO.square().sum((0, 1))
        sampled_BST = gradient_BTO[..., self._rows_S.to(gradient_BTO.device)].transpose(1, 2)
        self._gradients.append(torch.bmm(sampled_BST, self._x_BTI))

    def scores(self, n_tokens: int) -> LinearScores:
        return LinearScores(
            rows_S=self._rows_S,
            gradient_QSI=torch.cat(self._gradients),
            power_O=self._power_O / n_tokens,
        )


def backpropagate_block(
    decoder: Decoder,
    block: nn.Module,
    inputs: Sequence[Input],
    rows: Mapping[str, Tensor],
    hidden: HiddenStates,
    above: HiddenStates,
    below: HiddenStates,
    batches: Sequence[Sequence[int]],
) -> BlockScores:
    """Gradients of the linears in `rows` (module path to sampled rows), and the block's input's.

    `hidden` enters the block; `above` and `below` hold gradients of its output and its input, every
    sequence once per draw: draw k of sequence n is the entry n + k * len(hidden.lengths). Padding
    has gradient 0 and counts nowhere.
    """
    n_sequences = len(hidden.lengths)
    n_draws = len(above.lengths) // n_sequences
    watches = {linear: _Watch(rows_S) for linear, rows_S in rows.items()}
    accumulators: dict[str, HessianAccumulator] = {}
    real_BT = torch.empty(0)

    def accumulate(source: Input, x_BTI: Tensor) -> None:
        x_TI = x_BTI.detach()[real_BT]
        if source.name not in accumulators:
            accumulators[source.name] = HessianAccumulator(x_TI.shape[1], x_TI.device)
        accumulators[source.name].add(x_TI)

    for linear, watch in watches.items():
        block.get_submodule(linear).register_forward_hook(watch.forward)
    for source in inputs:
        block.get_submodule(source.linears[0]).register_forward_pre_hook(
            lambda _module, arguments, source=source: accumulate(source, arguments[0])
        )
    for batch in batches:
        hidden_BTD, real_BT = hidden.gather(batch)
        real_BT = real_BT.to(decoder.device)
        hidden_BTD = hidden_BTD.to(decoder.device).requires_grad_()
        output_BTD = decoder.forward_block(block, hidden_BTD)
        for draw in range(n_draws):
            entries = [sample + draw * n_sequences for sample in batch]
            gradient_BTD, _ = above.gather(entries)
            (below_BTD,) = torch.autograd.grad(
                output_BTD,
                hidden_BTD,
                gradient_BTD.to(decoder.device),
                retain_graph=draw + 1 < n_draws,
            )
            below.scatter(entries, below_BTD.cpu())
    n_tokens = sum(above.lengths)
    return BlockScores(
        statistics={name: accumulators.pop(name).statistics() for name in list(accumulators)},
        linears={linear: watch.scores(n_tokens) for linear, watch in watches.items()},
    )
