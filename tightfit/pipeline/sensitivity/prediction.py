"""Predicted losses: one pass forward, one backward, a block in memory at a time.

Forward, the hidden states that enter each block go to disk. Backward, each block is loaded again,
its forward is repeated with gradients, and its linears are judged on their grids. A finished unit
(the head, a block, the embedding) has its losses on disk, which is what an interrupted run resumes
from.

Shape legend: B sequences of a batch, T positions, O rows, I columns, D hidden width, V vocabulary,
U distinct tokens, S sampled rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.calib.hidden import HiddenStates, plan_batches
from tightfit.pipeline.job import PackedTensor, UnitResult, block_unit
from tightfit.pipeline.passes import replay
from tightfit.pipeline.quantize import quantize_head, quantize_rounded
from tightfit.pipeline.sensitivity.embedding import embedding_scores
from tightfit.pipeline.sensitivity.errors import linear_loss_nats, rounding_errors
from tightfit.pipeline.sensitivity.gradients import (
    GRADIENT_BATCH_TOKENS,
    BlockScores,
    backpropagate_block,
)
from tightfit.pipeline.sensitivity.head import backpropagate_head
from tightfit.pipeline.sensitivity.rows import spread_rows
from tightfit.pipeline.sensitivity.scratch import Losses, Scratch
from tightfit.pipeline.sensitivity.subject import Subject
from tightfit.quant.algorithms.hessian import HessianAccumulator, InputStatistics
from tightfit.quant.registry import get_grid
from tightfit.reporter import Reporter

HEAD_UNIT = "head"
EMBEDDING_UNIT = "embedding"
DRAWS = 1
"""Random gradients per token (see `GRADIENT_TOKENS`)."""
MEASURED_NATS = 1e-4
"""KL that a measured matrix should have: that of one in a model at about 4 bits, and a thousand
times the noise of float32 logits."""
_NO_LOSS = 1e-30
_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """The two passes over a model."""

    subject: Subject
    scratch: Scratch

    def run(self, reporter: Reporter) -> Losses:
        """Losses of every matrix; those to be measured lie quantized in the scratch folder."""
        self.forward(reporter)
        n_blocks = self.subject.decoder.n_blocks
        with reporter.progress(n_blocks + 2, "losses of the grids") as progress:
            self._head()
            progress.advance()
            for layer in reversed(range(n_blocks)):
                self._backward(layer)
                progress.advance()
            self._embedding()
            progress.advance()
        return self._joined()

    def forward(self, reporter: Reporter) -> None:
        """The states that enter each block, and the final norm, on disk."""
        n_blocks = self.subject.decoder.n_blocks
        with reporter.progress(n_blocks + 1, "hidden states") as progress:
            self._embed()
            progress.advance()
            for layer in range(n_blocks):
                self._forward(layer)
                progress.advance()

    def _embed(self) -> None:
        if self.scratch.has_states(_hidden(0)):
            return
        decoder = self.subject.decoder
        embedding_VD = self.subject.source(decoder.architecture.embedding)
        with self.scratch.new_states(_hidden(0), self.subject.lengths) as hidden:
            for sample, ids in enumerate(self.subject.sequences):
                hidden.scatter([sample], decoder.embed(ids, embedding_VD)[None].cpu())

    def _forward(self, layer: int) -> None:
        if self.scratch.has_states(_hidden(layer + 1)):
            return
        decoder = self.subject.decoder
        block = decoder.block(layer, decoder.load_block(layer, self.subject.source))
        with self.scratch.new_states(_hidden(layer + 1), self.subject.lengths) as following:
            replay(decoder, block, self._states(layer), plan_batches(following.lengths), following)

    def _head(self) -> None:
        if self.scratch.has_losses(HEAD_UNIT):
            return
        subject, n_blocks = self.subject, self.subject.decoder.n_blocks
        head_VD = subject.weight(subject.head_name)
        with self.scratch.new_states(_gradient(n_blocks), self._draw_lengths()) as below:
            scores = backpropagate_head(
                subject.decoder,
                self._states(n_blocks),
                subject.weight(subject.decoder.architecture.final_norm),
                head_VD,
                below,
                _SEED,
            )
        weights = {subject.head_name: head_VD[scores.drawn.rows_S]}
        grids = {subject.head_name: subject.grids(subject.head_name)}
        losses = {
            grid: scores.loss_nats(difference_SD)
            for _, grid, difference_SD in rounding_errors(
                weights, grids, scores.statistics, subject.method
            )
        }
        self.scratch.save_losses(HEAD_UNIT, {subject.head_name: losses})

    def _backward(self, layer: int) -> None:
        unit = block_unit(layer)
        if self.scratch.has_losses(unit):
            return
        decoder, linears = self.subject.decoder, self.subject.linears(layer)
        parameters = decoder.load_block(layer, self.subject.source)
        hidden = self._states(layer)
        with self.scratch.new_states(_gradient(layer), self._draw_lengths()) as below:
            scores = backpropagate_block(
                decoder,
                decoder.block(layer, parameters),
                decoder.block_kind(layer).inputs,
                {path: spread_rows(len(parameters[f"{path}.weight"])) for path in linears},
                hidden,
                self.scratch.states(_gradient(layer + 1), self._draw_lengths()),
                below,
                plan_batches(hidden.lengths, GRADIENT_BATCH_TOKENS),
            )
        losses: dict[str, dict[str, float]] = {}
        measured: dict[str, PackedTensor] = {}
        for source in decoder.block_kind(layer).inputs:
            names = {path: linears[path] for path in source.linears if path in linears}
            statistics = scores.statistics[source.name]
            losses |= self._judge(names, parameters, scores, statistics)
            for path, name in names.items():
                if name in self.subject.measured_names():
                    w_OI = parameters[f"{path}.weight"]
                    measured |= self._quantize(name, w_OI, losses[name], statistics).quantized
        if measured:
            self.scratch.units.save(unit, UnitResult(quantized=measured, plain={}))
        self.scratch.save_losses(unit, losses)
        self.scratch.drop_states(_gradient(layer + 1))

    def _judge(
        self,
        names: Mapping[str, str],
        parameters: Mapping[str, Tensor],
        scores: BlockScores,
        statistics: InputStatistics,
    ) -> dict[str, dict[str, float]]:
        """Losses of the linears (module path to checkpoint name) that read one input."""
        weights = {
            path: parameters[f"{path}.weight"][scores.linears[path].rows_S] for path in names
        }
        grids = {path: self.subject.grids(name) for path, name in names.items()}
        losses: dict[str, dict[str, float]] = {name: {} for name in names.values()}
        for path, grid, difference_SI in rounding_errors(
            weights, grids, statistics, self.subject.method
        ):
            losses[names[path]][grid] = linear_loss_nats(
                difference_SI,
                parameters[f"{path}.weight"],
                scores.linears[path],
                statistics.importance_I,
                sum(self._draw_lengths()),
            )
        return losses

    def _embedding(self) -> None:
        """The embedding's losses; head and embedding to be measured are quantized here.

        A tied matrix loses in both of its uses.
        """
        if self.scratch.has_losses(EMBEDDING_UNIT):
            return
        subject = self.subject
        name = subject.decoder.architecture.embedding
        statistics = self._final_statistics()
        losses = {name: self._embedding_losses(statistics if subject.tied else None)}
        for matrix in sorted({name, subject.head_name} & subject.measured_names()):
            reads = statistics if matrix == subject.head_name else None
            total = _sum_losses([losses, self.scratch.losses(HEAD_UNIT)])[matrix]
            result = self._quantize(matrix, subject.source(matrix), total, reads)
            self.scratch.units.save(matrix, result)
        self.scratch.save_losses(EMBEDDING_UNIT, losses)

    def _embedding_losses(self, statistics: InputStatistics | None) -> dict[str, float]:
        subject = self.subject
        name = subject.decoder.architecture.embedding
        if not subject.grids(name):
            return {}
        embedding_VD = subject.source(name)
        scores = embedding_scores(
            subject.sequences,
            self.scratch.states(_gradient(0), self._draw_lengths()),
            embedding_VD,
        )
        w_SD = embedding_VD[scores.drawn.rows_S].to(subject.decoder.device, torch.float32)
        grids = {name: subject.grids(name)}
        return {
            grid: scores.loss_nats(difference_SD)
            for _, grid, difference_SD in rounding_errors(
                {name: w_SD}, grids, statistics, subject.method
            )
        }

    def _quantize(
        self,
        name: str,
        w_OI: Tensor,
        losses: Mapping[str, float],
        statistics: InputStatistics | None,
    ) -> UnitResult:
        """The whole matrix on the grid whose loss can be measured best."""
        chosen = min(
            losses, key=lambda grid: abs(math.log(max(losses[grid], _NO_LOSS) / MEASURED_NATS))
        )
        if statistics is None:
            return quantize_rounded(name, w_OI, get_grid(chosen))
        return quantize_head(name, w_OI, statistics, get_grid(chosen), self.subject.method)

    def _final_statistics(self) -> InputStatistics:
        """Statistics of what the head reads."""
        decoder = self.subject.decoder
        norm_D = self.subject.weight(decoder.architecture.final_norm)
        accumulator = HessianAccumulator(len(norm_D), decoder.device)
        hidden = self._states(decoder.n_blocks)
        for sample in range(len(hidden.lengths)):
            hidden_TD = hidden.gather([sample])[0][0].to(decoder.device)
            accumulator.add(decoder.normalize(hidden_TD, norm_D))
        return accumulator.statistics()

    def _joined(self) -> Losses:
        units = [HEAD_UNIT, *map(block_unit, range(self.subject.decoder.n_blocks)), EMBEDDING_UNIT]
        joined = _sum_losses([self.scratch.losses(unit) for unit in units])
        return {name: losses for name, losses in joined.items() if losses}

    def _states(self, layer: int) -> HiddenStates:
        return self.scratch.states(_hidden(layer), self.subject.lengths)

    def _draw_lengths(self) -> tuple[int, ...]:
        return self.subject.lengths * DRAWS


def _hidden(layer: int) -> str:
    """States that enter a block, or the final norm."""
    return f"hidden-{layer:05d}"


def _gradient(layer: int) -> str:
    """Gradients of the states that enter a block, or the final norm."""
    return f"gradient-{layer:05d}"


def _sum_losses(parts: Sequence[Losses]) -> dict[str, dict[str, float]]:
    """Losses of all parts; a tied matrix has the sum of its two uses."""
    total: dict[str, dict[str, float]] = {}
    for part in parts:
        for name, losses in part.items():
            earlier = total.setdefault(name, {})
            for grid, nats in losses.items():
                earlier[grid] = earlier.get(grid, 0.0) + nats
    return total
