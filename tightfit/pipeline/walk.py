"""The walk: one decoder block in memory at a time, quantized on what reaches it.

For each block: load its parameters, pass the calibration hidden states through it once to collect
statistics, quantize, put the dequantized weights in place, pass the hidden states through again,
write the unit, drop everything. So every block is calibrated on the errors of those before it.
The embedding is rounded by itself; the head is calibrated on the final norm's output.

A finished unit and the hidden states behind it are on disk before the next one starts, which is
what an interrupted job resumes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tightfit.calib.calibration import CalibrationSet
from tightfit.calib.decoder import Decoder, WeightSource
from tightfit.calib.hidden import HiddenStates, plan_batches
from tightfit.errors import QuantizationError
from tightfit.pipeline.collect import collect_statistics, replay
from tightfit.pipeline.job import Job, UnitResult, block_unit
from tightfit.pipeline.quantize import Method, quantize_block, quantize_head, quantize_rounded
from tightfit.quant.algorithms.hessian import HessianAccumulator, InputStatistics
from tightfit.quant.grid import Grid
from tightfit.reporter import Reporter

EMBEDDING_UNIT = "embedding"
HEAD_UNIT = "head"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Walk:
    """One pass over a model."""

    decoder: Decoder
    source: WeightSource
    grids: Mapping[str, Grid]
    """Grid of every quantized matrix by checkpoint name; a tied head is under the embedding."""
    method: Method
    calibration: CalibrationSet
    job: Job

    def run(self, reporter: Reporter) -> None:
        """Finish every unit that is not finished yet."""
        units = self.decoder.n_blocks + 2
        with reporter.progress(units, "quantizing") as progress:
            self._embedding()
            progress.advance(1)
            for layer in range(self.decoder.n_blocks):
                self._block(layer)
                progress.advance(1)
            self._head()
            progress.advance(1)

    @property
    def units(self) -> tuple[str, ...]:
        """Names of all units, in the order of the model."""
        blocks = (block_unit(layer) for layer in range(self.decoder.n_blocks))
        return (EMBEDDING_UNIT, *blocks, HEAD_UNIT)

    def _embedding(self) -> None:
        """Embed the calibration tokens, and round the embedding where it has a grid of its own."""
        if self.job.has(EMBEDDING_UNIT):
            return
        name = self.decoder.architecture.embedding
        embedding_VD = self._weight(name)
        hidden = self._hidden(0)
        for sample, item in enumerate(self.calibration.samples):
            hidden.scatter([sample], self.decoder.embed(item.ids, embedding_VD)[None].cpu())
        if self._tied:
            result = UnitResult(quantized={}, plain={})
        else:
            result = quantize_rounded(name, embedding_VD, self.grids[name])
        self.job.save(EMBEDDING_UNIT, result)

    def _block(self, layer: int) -> None:
        unit = block_unit(layer)
        if self.job.has(unit):
            return
        architecture = self.decoder.architecture
        hidden = self._hidden(layer)
        batches = plan_batches(hidden.lengths)
        parameters = self.decoder.load_block(layer, self._weight)
        statistics = collect_statistics(
            self.decoder,
            self.decoder.block(layer, parameters),
            architecture.block_kind(layer).inputs,
            hidden,
            batches,
        )
        prefix = architecture.tensor(layer, "")
        grids = {
            name.removeprefix(prefix): grid
            for name, grid in self.grids.items()
            if name.startswith(prefix)
        }
        quantized = quantize_block(
            architecture.block_kind(layer),
            parameters,
            statistics,
            grids,
            self.method,
            n_heads=self.decoder.config.num_attention_heads,
            n_kv_heads=self.decoder.config.num_key_value_heads,
        )
        following = self._hidden(layer + 1)
        block = self.decoder.block(layer, quantized.values)
        replay(self.decoder, block, hidden, batches, following)
        following.flush()
        self.job.save(unit, quantized.unit(prefix))
        self.job.hidden_file(layer).unlink()

    def _head(self) -> None:
        if self.job.has(HEAD_UNIT):
            return
        names = self.decoder.architecture
        norm_D = self._weight(names.final_norm)
        name = names.embedding if self._tied else names.head
        result = quantize_head(
            name, self._weight(name), self._head_statistics(norm_D), self.grids[name], self.method
        )
        plain = {names.final_norm: norm_D.float()}
        self.job.save(
            HEAD_UNIT,
            UnitResult(quantized=result.quantized, plain=plain, reports=result.reports),
        )
        self.job.hidden_file(self.decoder.n_blocks).unlink()

    def _head_statistics(self, norm_D: Tensor) -> InputStatistics:
        hidden = self._hidden(self.decoder.n_blocks)
        accumulator = HessianAccumulator(norm_D.shape[0], self.decoder.device)
        for batch in plan_batches(hidden.lengths):
            hidden_BTD, real_BT = hidden.gather(batch)
            real_ND = hidden_BTD[real_BT].to(self.decoder.device)
            accumulator.add(self.decoder.normalize(real_ND, norm_D))
        return accumulator.statistics()

    def _weight(self, name: str) -> Tensor:
        """A tensor of the checkpoint, named in the error when a number in it is damaged."""
        weight = self.source(name)
        if not weight.isfinite().all():
            raise QuantizationError(
                f"{name} holds NaN or infinity",
                allowed="every weight of the checkpoint must be a finite number",
                hint="the checkpoint is damaged: download or convert it again",
            )
        return weight

    @property
    def _tied(self) -> bool:
        return bool(self.decoder.config.tie_word_embeddings)

    def _hidden(self, layer: int) -> HiddenStates:
        return HiddenStates(
            self.job.hidden_file(layer),
            [len(sample.ids) for sample in self.calibration.samples],
            self.decoder.config.hidden_size,
        )
