"""Measured losses: some matrices, each alone on a low grid, and the KL that follows.

One pass over the blocks carries the states of the model as it is, and those of every variant from
the block of its matrix on; a block is loaded once for all. After the head, KL is summed over the
whole vocabulary.

Shape legend: T positions, D hidden width, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.calib.decoder import Decoder
from tightfit.calib.hidden import HiddenStates, plan_batches
from tightfit.pipeline.job import PackedTensor, block_unit
from tightfit.pipeline.sensitivity.scratch import Losses, Scratch
from tightfit.pipeline.sensitivity.subject import Subject
from tightfit.pipeline.sensitivity.tokens import Sequences
from tightfit.quant.registry import get_grid
from tightfit.reporter import Reporter
from tightfit.targets.allocation.sensitivity import MeasuredLoss

_LOGITS = 2**25
"""Logits in memory at once, of either model (128 MiB)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Injection:
    """The measuring pass. Variants are in the order in which they leave the unchanged model."""

    subject: Subject
    scratch: Scratch
    predicted: Losses
    sequences: Sequences
    """Token ids that KL is measured on."""

    def run(self, reporter: Reporter) -> tuple[MeasuredLoss, ...]:
        """Measured and predicted loss of every matrix that lies quantized in the folder."""
        n_blocks = self.subject.decoder.n_blocks
        finished = [n for n in range(n_blocks + 1) if self.scratch.has_states(_variants(n))]
        with reporter.progress(n_blocks + 2, "measured losses") as progress:
            if not finished:
                self._embed()
            first = max(finished, default=0)
            progress.advance(first + 1)
            for layer in range(first, n_blocks):
                self._block(layer)
                progress.advance()
            measured = self._head()
            progress.advance()
        return measured

    def _embed(self) -> None:
        names = self.subject.decoder.architecture
        embedding_VD = self.subject.source(names.embedding)
        tables = [embedding_VD, *(_values(p) for p in self._ends([names.embedding]).values())]
        with self.scratch.new_states(_variants(0), self._lengths(len(tables))) as states:
            for entry, (table_VD, ids) in enumerate(
                (table_VD, ids) for table_VD in tables for ids in self.sequences
            ):
                states.scatter([entry], self.subject.decoder.embed(ids, table_VD)[None].cpu())

    def _block(self, layer: int) -> None:
        """Alive variants pass through the block as it is; its own leave the unchanged model."""
        decoder = self.subject.decoder
        parameters = decoder.load_block(layer, self.subject.source)
        entering = self.scratch.states(_variants(layer), self._lengths(self._n_alive(layer)))
        unchanged = range(len(self.sequences))
        with self.scratch.new_states(
            _variants(layer + 1), self._lengths(self._n_alive(layer + 1))
        ) as leaving:
            self._pass(layer, parameters, entering, leaving, range(len(entering.lengths)), 0)
            shift = len(entering.lengths)
            for name, packed in self._packed(layer).items():
                path = name.removeprefix(decoder.architecture.tensor(layer, ""))
                changed = parameters | {path: _values(packed).to(decoder.device)}
                self._pass(layer, changed, entering, leaving, unchanged, shift)
                shift += len(unchanged)
        self.scratch.drop_states(_variants(layer))

    def _pass(
        self,
        layer: int,
        parameters: Mapping[str, Tensor],
        entering: HiddenStates,
        leaving: HiddenStates,
        entries: range,
        shift: int,
    ) -> None:
        """Pass entries through the block with these parameters; they land `shift` further on."""
        decoder = self.subject.decoder
        block = decoder.block(layer, parameters)
        for batch in plan_batches(entering.lengths[: len(entries)]):
            hidden_BTD, _ = entering.gather(batch)
            output_BTD = decoder.run_block(block, hidden_BTD.to(decoder.device)).cpu()
            leaving.scatter([entry + shift for entry in batch], output_BTD)

    def _head(self) -> tuple[MeasuredLoss, ...]:
        subject, n_blocks = self.subject, self.subject.decoder.n_blocks
        names = subject.decoder.architecture
        states = self.scratch.states(_variants(n_blocks), self._lengths(self._n_alive(n_blocks)))
        norm_D = subject.weight(names.final_norm)
        head_VD = subject.weight(subject.head_name)
        packed: dict[str, PackedTensor] = dict(self._ends([names.embedding]))
        for layer in range(n_blocks):
            packed |= self._packed(layer)
        alive = len(packed)
        packed |= self._ends([names.head])
        measured = []
        for number, (name, tensor) in enumerate(packed.items()):
            replaced = name == subject.head_name
            kl = _mean_kl(
                subject.decoder,
                norm_D,
                states,
                range(len(self.sequences)),
                (number + 1) * len(self.sequences) if number < alive else 0,
                head_VD,
                _values(tensor).to(head_VD.device) if replaced else head_VD,
            )
            measured.append(
                MeasuredLoss(
                    tensor=name,
                    grid=tensor.grid,
                    predicted_nats=self.predicted[name][tensor.grid],
                    measured_nats=kl,
                )
            )
        return tuple(measured)

    def _packed(self, layer: int) -> Mapping[str, PackedTensor]:
        """The block's quantized matrices, in the order of its variants."""
        unit = block_unit(layer)
        if not self.scratch.units.has(unit):
            return {}
        packed = self.scratch.units.load(unit).quantized
        return {name: packed[name] for name in sorted(packed)}

    def _ends(self, names: Sequence[str]) -> dict[str, PackedTensor]:
        """Those of head and embedding that are quantized."""
        return {
            name: self.scratch.units.load(name).quantized[name]
            for name in names
            if self.scratch.units.has(name)
        }

    def _n_alive(self, layer: int) -> int:
        """Sets of states that enter a block: the unchanged model's and those of its variants."""
        before = sum(len(self._packed(earlier)) for earlier in range(layer))
        return 1 + len(self._ends([self.subject.decoder.architecture.embedding])) + before

    def _lengths(self, n_sets: int) -> tuple[int, ...]:
        return tuple(map(len, self.sequences)) * n_sets


def _mean_kl(
    decoder: Decoder,
    norm_D: Tensor,
    states: HiddenStates,
    entries: range,
    shift: int,
    head_VD: Tensor,
    changed_VD: Tensor,
) -> float:
    """Mean KL divergence per token of a variant, `shift` entries further on, in nats."""
    total, n_tokens = 0.0, 0
    for entry in entries:
        pair = [
            decoder.normalize(states.gather([which])[0][0].to(decoder.device), norm_D)
            for which in (entry, entry + shift)
        ]
        for x_TD, y_TD in zip(
            *(torch.split(x_TD, max(1, _LOGITS // len(head_VD))) for x_TD in pair), strict=True
        ):
            log_p_TV = (x_TD @ head_VD.T).log_softmax(1)
            log_q_TV = (y_TD @ changed_VD.T).log_softmax(1)
            kl_T = (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(1)
            total += kl_T.sum(dtype=torch.float64).item()
            n_tokens += len(kl_T)
    return total / n_tokens


def _values(packed: PackedTensor) -> Tensor:
    """float32 matrix that a reader gets."""
    tensor = packed.unpack()
    return get_grid(tensor.grid).dequantize(tensor)


def _variants(layer: int) -> str:
    """States of all variants that enter a block, or the final norm."""
    return f"variants-{layer:05d}"
