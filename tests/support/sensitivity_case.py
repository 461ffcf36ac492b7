"""A model with its calibration, and what a measurement of sensitivity needs of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tightfit.calib.calibration import CalibrationOptions, CalibrationSet, load_calibration
from tightfit.calib.checkpoint import Checkpoint, open_checkpoint
from tightfit.calib.decoder import Decoder
from tightfit.calib.tokenizer import load_tokenizer
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.sensitivity.prediction import Prediction
from tightfit.pipeline.sensitivity.scratch import Scratch
from tightfit.pipeline.sensitivity.subject import Subject
from tightfit.reporter import SilentReporter


@dataclasses.dataclass(frozen=True, kw_only=True)
class SensitivityCase:
    checkpoint: Checkpoint
    calibration: CalibrationSet

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.checkpoint.path, self.checkpoint.architecture, torch.device("cpu"))

    @property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        return tuple(sample.ids for sample in self.calibration.samples)

    @property
    def model(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(
            self.checkpoint.path, dtype=torch.float32
        ).eval()

    def options(self, *grids: str) -> dict[str, tuple[str, ...]]:
        names = self.checkpoint.names()
        return {name: grids for name in names if len(self.checkpoint.shape(name)) == 2}

    def prediction(
        self,
        folder: Path,
        options: Mapping[str, Sequence[str]],
        algorithm: Algorithm = Algorithm.RTN,
    ) -> Prediction:
        subject = Subject(
            decoder=self.decoder,
            source=self.checkpoint.load,
            options=options,
            method=Method(algorithm=algorithm),
            sequences=self.sequences,
        )
        return Prediction(
            subject=subject, scratch=Scratch(folder, subject.decoder.config.hidden_size)
        )

    def forward(self, folder: Path) -> Prediction:
        """A prediction that has its hidden states."""
        prediction = self.prediction(folder, {})
        prediction.forward(SilentReporter())
        return prediction


def sensitivity_case(path: Path, samples: int) -> SensitivityCase:
    calibration = load_calibration(load_tokenizer(path), CalibrationOptions(samples=samples))
    return SensitivityCase(checkpoint=open_checkpoint(path), calibration=calibration)
