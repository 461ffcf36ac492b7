"""The output head: gradients of the final hidden states, and the head's own losses.

A head's error D changes the logits of a token by D x alone, so its loss needs no gradients: with
the rows taken as independent (`gradients`),

    KL_t ~ 1/2 sum_v p_v (1 - p_v) (D_v . x_t)^2

Shape legend: N tokens, T tokens in hand, D hidden width, V vocabulary, S sampled rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.calib.decoder import Decoder
from tightfit.calib.hidden import HiddenStates
from tightfit.pipeline.sensitivity.rows import DrawnRows, likely_rows
from tightfit.quant.algorithms.hessian import HessianAccumulator, InputStatistics

HEAD_ROWS = 512
"""Rows drawn: the vocabulary is large, and one matrix holds a tenth or more of a small model."""
_LOGITS = 2**25
"""Logits in memory at once (128 MiB)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadScores:
    """What the losses of a head are computed from."""

    statistics: InputStatistics
    drawn: DrawnRows
    x_ND: Tensor
    """float32: what the head reads."""
    variance_NS: Tensor
    """float32: p (1 - p) of the drawn rows."""

    def loss_nats(self, difference_SD: Tensor) -> float:
        """Predicted mean KL of a head whose drawn rows are off by this."""
        change_NS = self.x_ND @ difference_SD.T
        loss_S = (self.variance_NS * change_NS.square_()).mean(0)
        return 0.5 * torch.dot(loss_S.double(), self.drawn.weight_S.double()).item()


def backpropagate_head(
    decoder: Decoder,
    hidden: HiddenStates,
    norm_D: Tensor,
    head_VD: Tensor,
    below: HiddenStates,
    seed: int,
) -> HeadScores:
    """Scores of the head; gradients of what enters the final norm go to `below`.

    Draw k of sequence n is the entry n + k * len(hidden.lengths) of `below`.
    """
    n_sequences = len(hidden.lengths)
    n_draws = len(below.lengths) // n_sequences
    generator = torch.Generator(decoder.device).manual_seed(seed)
    accumulator = HessianAccumulator(norm_D.shape[0], decoder.device)
    variance_V = torch.zeros(len(head_VD), device=decoder.device)
    inputs: list[Tensor] = []
    normalizers: list[Tensor] = []
    for sample in range(n_sequences):
        hidden_TD = hidden.gather([sample])[0][0].to(decoder.device).requires_grad_()
        normed_TD = decoder.forward_norm(hidden_TD, norm_D)
        x_TD = normed_TD.detach()
        gradients: list[list[Tensor]] = [[] for _ in range(n_draws)]
        for logits_TV in _logits(x_TD, head_VD):
            normalizers.append(logits_TV.logsumexp(1))
            p_TV = logits_TV.softmax(1)
            variance_V += (p_TV - p_TV.square()).sum(0)
            for drawn in gradients:
                drawn.append(draw_gradient(p_TV, generator) @ head_VD)
        for draw, drawn in enumerate(gradients):
            (gradient_TD,) = torch.autograd.grad(
                normed_TD, hidden_TD, torch.cat(drawn), retain_graph=draw + 1 < n_draws
            )
            below.scatter([sample + draw * n_sequences], gradient_TD[None].cpu())
        accumulator.add(x_TD)
        inputs.append(x_TD)
    x_ND = torch.cat(inputs)
    statistics = accumulator.statistics()
    energy_V = head_VD.square() @ statistics.importance_I
    drawn_rows = likely_rows(variance_V * energy_V, HEAD_ROWS)
    logits_NS = x_ND @ head_VD[drawn_rows.rows_S].T
    p_NS = (logits_NS - torch.cat(normalizers)[:, None]).exp()
    return HeadScores(
        statistics=statistics, drawn=drawn_rows, x_ND=x_ND, variance_NS=p_NS * (1 - p_NS)
    )


def draw_gradient(p_TV: Tensor, generator: torch.Generator) -> Tensor:
    """Random (T, V) gradients of the logits whose covariance is diag(p) - p p^T."""
    signs_TV = torch.randint(
        2, p_TV.shape, generator=generator, device=p_TV.device, dtype=torch.int8
    )
    root_TV = p_TV.sqrt() * (2 * signs_TV - 1)
    return root_TV - p_TV * root_TV.sum(1, keepdim=True)


def _logits(x_TD: Tensor, head_VD: Tensor) -> Iterator[Tensor]:
    """(T, V) logits, some tokens at a time."""
    for part_TD in torch.split(x_TD, max(1, _LOGITS // len(head_VD))):
        yield part_TD @ head_VD.T
