"""The walk: one decoder block in memory at a time, quantized on what reaches it.

For each block: load its parameters, pass the calibration hidden states through it once to collect
statistics, quantize, put the dequantized weights in place, pass the hidden states through again,
write the unit, drop everything. So every block is calibrated on the errors of those before it.
The embedding is rounded by itself; the head is calibrated on the final norm's output. A matrix
without a grid stays as it is in the checkpoint.

A finished unit and the hidden states behind it are on disk before the next one starts, which is
what an interrupted job resumes from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tightfit.calib.calibration import CalibrationSet
from tightfit.calib.decoder import Decoder, WeightSource
from tightfit.calib.hidden import HiddenStates, plan_batches
from tightfit.errors import QuantizationError
from tightfit.pipeline.collect import collect_statistics, replay
from tightfit.pipeline.job import UnitResult, Units, block_unit
from tightfit.pipeline.quantize import Method, quantize_block, quantize_head, quantize_rounded
from tightfit.quant.algorithms.hessian import HessianAccumulator, InputStatistics
from tightfit.quant.grid import Grid
from tightfit.reporter import Reporter

EMBEDDING_UNIT = "embedding"
HEAD_UNIT = "head"
_CHECKED_ROWS = 4096


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Walk:
    """One pass over a model."""

    decoder: Decoder
    source: WeightSource
    grids: Mapping[str, Grid]
    """Grid of every quantized matrix by checkpoint name; a tied head is under the embedding."""
    plain_dtype: torch.dtype
    """What norms and biases are rounded to, because the artifacts store them so."""
    method: Method
    calibration: CalibrationSet
    units: Units

    def run(self, reporter: Reporter) -> None:
        """Finish every unit that is not finished yet."""
        with reporter.progress(len(self.unit_names), "quantizing") as progress:
            self._embedding()
            progress.advance(1)
            for layer in range(self.decoder.n_blocks):
                self._block(layer)
                progress.advance(1)
            self._head()
            progress.advance(1)

    @property
    def unit_names(self) -> tuple[str, ...]:
        """All units, in the order of the model."""
        blocks = (block_unit(layer) for layer in range(self.decoder.n_blocks))
        return (EMBEDDING_UNIT, *blocks, HEAD_UNIT)

    def _embedding(self) -> None:
        """Embed the calibration tokens, and round the embedding where it has a grid of its own."""
        if self.units.has(EMBEDDING_UNIT):
            return
        name = self.decoder.architecture.embedding
        embedding_VD = self._weight(name)
        hidden = self._hidden(0)
        for sample, item in enumerate(self.calibration.samples):
            hidden.scatter([sample], self.decoder.embed(item.ids, embedding_VD)[None].cpu())
        result = UnitResult(quantized={}, plain={})
        if name in self.grids and not self._tied:
            result = quantize_rounded(name, embedding_VD, self.grids[name])
        self.units.save(EMBEDDING_UNIT, result)

    def _block(self, layer: int) -> None:
        unit = block_unit(layer)
        if self.units.has(unit):
            return
        architecture = self.decoder.architecture
        hidden = self._hidden(layer)
        batches = plan_batches(hidden.lengths)
        parameters = self.decoder.load_block(layer, self._weight)
        statistics = collect_statistics(
            self.decoder,
            self.decoder.block(layer, parameters),
            self.decoder.block_kind(layer).inputs,
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
            self.decoder.block_kind(layer),
            parameters,
            statistics,
            grids,
            self.method,
            plain_dtype=self.plain_dtype,
            n_heads=self.decoder.config.num_attention_heads,
            n_kv_heads=self.decoder.config.num_key_value_heads,
        )
        following = self._hidden(layer + 1)
        block = self.decoder.block(layer, quantized.values)
        replay(self.decoder, block, hidden, batches, following)
        following.flush()
        self.units.save(unit, quantized.unit(prefix))
        self.units.hidden_file(layer).unlink()

    def _head(self) -> None:
        if self.units.has(HEAD_UNIT):
            return
        names = self.decoder.architecture
        norm_D = self._weight(names.final_norm).to(self.plain_dtype).float()
        name = names.embedding if self._tied else names.head
        result = UnitResult(quantized={}, plain={})
        if name in self.grids:
            statistics = self._head_statistics(norm_D)
            result = quantize_head(
                name, self._weight(name), statistics, self.grids[name], self.method
            )
        self.units.save(HEAD_UNIT, replace(result, plain={names.final_norm: norm_D}))
        self.units.hidden_file(self.decoder.n_blocks).unlink()

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
        # Some rows at a time: the check of a whole embedding would need a second one.
        if not all(rows.isfinite().all() for rows in torch.split(weight, _CHECKED_ROWS)):
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
            self.units.hidden_file(layer),
            [len(sample.ids) for sample in self.calibration.samples],
            self.decoder.config.hidden_size,
        )
