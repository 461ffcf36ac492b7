"""Losses of the embedding, from the gradients of the states that enter the first block.

The gradient of a row, over one sequence, is the sum of those of its token's places. As for the
linears (`gradients`), with the rows taken as independent,

    sum over tokens of KL ~ 1/2 sum_v E[(G_v . D_v)^2]

Shape legend: D hidden width, V vocabulary, P pairs of a sequence and one of its tokens, S rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.calib.hidden import HiddenStates
from tightfit.pipeline.sensitivity.rows import DrawnRows, likely_rows
from tightfit.pipeline.sensitivity.tokens import Sequences

EMBEDDING_ROWS = 1024
"""Rows drawn among the tokens that occur; each has few gradients, so more than elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EmbeddingScores:
    """What the losses of an embedding are computed from."""

    drawn: DrawnRows
    place_P: Tensor
    """int64: index of each pair's row among the drawn rows."""
    gradient_PD: Tensor
    """float32: G of each pair."""
    n_tokens: int
    """Counted once per draw."""

    def loss_nats(self, difference_SD: Tensor) -> float:
        """Predicted mean KL of an embedding whose drawn rows are off by this."""
        difference_SD = difference_SD.to(self.gradient_PD.device)
        squared_P = (self.gradient_PD * difference_SD[self.place_P]).sum(1).double().square()
        weighted = torch.dot(squared_P, self.drawn.weight_S.double()[self.place_P])
        return 0.5 * weighted.item() / self.n_tokens


def embedding_scores(
    sequences: Sequences, gradient: HiddenStates, embedding_VD: Tensor
) -> EmbeddingScores:
    """Scores of the rows that occur in the sequences.

    `gradient` holds draw k of sequence n as the entry n + k * len(sequences).
    """
    rows: list[Tensor] = []
    sums: list[Tensor] = []
    for entry in range(len(gradient.lengths)):
        ids_T = torch.tensor(sequences[entry % len(sequences)])
        distinct, place_T = torch.unique(ids_T, return_inverse=True)
        gradient_TD = gradient.gather([entry])[0][0]
        rows.append(distinct)
        sums.append(gradient_TD.new_zeros(len(distinct), gradient_TD.shape[1]))
        sums[-1].index_add_(0, place_T, gradient_TD)
    row_P, gradient_PD = torch.cat(rows), torch.cat(sums)
    size_V = torch.zeros(len(embedding_VD))
    size_V.index_add_(0, row_P, gradient_PD.square().sum(1))
    occurring = size_V.nonzero()[:, 0]
    size_V[occurring] *= embedding_VD[occurring].float().square().sum(1).cpu()
    drawn = likely_rows(size_V, EMBEDDING_ROWS)
    kept_P = torch.isin(row_P, drawn.rows_S)
    return EmbeddingScores(
        drawn=drawn,
        place_P=torch.searchsorted(drawn.rows_S, row_P[kept_P]),
        gradient_PD=gradient_PD[kept_P],
        n_tokens=sum(gradient.lengths),
    )
