"""The whole measurement: measured KL, corrections, interruption, memory."""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.sensitivity_case import SensitivityCase, sensitivity_case

from tightfit.calib.decoder import Decoder, WeightSource
from tightfit.pipeline.job import Units
from tightfit.pipeline.quantize import Algorithm, Method
from tightfit.pipeline.sensitivity import run
from tightfit.pipeline.sensitivity.corrections import role_corrections
from tightfit.pipeline.sensitivity.run import measure_sensitivity
from tightfit.pipeline.sensitivity.tokens import spread_sequences
from tightfit.quant.registry import get_grid
from tightfit.reporter import Progress, Reporter, SilentReporter
from tightfit.targets.allocation.sensitivity import MeasuredLoss, Sensitivity

GRIDS = ("int3-g64-sym", "int4-g64-sym")


def measure(
    case: SensitivityCase,
    folder: Path,
    reporter: Reporter | None = None,
    decoder: Decoder | None = None,
    algorithm: Algorithm = Algorithm.RTN,
) -> Sensitivity:
    return measure_sensitivity(
        decoder or case.decoder,
        case.checkpoint.load,
        case.options(*GRIDS),
        Method(algorithm=algorithm),
        case.calibration,
        folder,
        reporter or SilentReporter(),
    )


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> SensitivityCase:
    path = make_checkpoint(tmp_path_factory.mktemp("tied") / "model", "qwen3", tie=True)
    return sensitivity_case(path, 3)


def test_measured_losses_are_those_of_the_whole_model(
    small: SensitivityCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each measured matrix put into the model in transformers, all others as they were."""
    kept: dict[str, torch.Tensor] = {}
    save = Units.save

    def keep(self, unit, result) -> None:
        for name, packed in result.quantized.items():
            kept[name] = get_grid(packed.grid).dequantize(packed.unpack())
        save(self, unit, result)

    monkeypatch.setattr(Units, "save", keep)
    sensitivity = measure(small, tmp_path, algorithm=Algorithm.GPTQ)
    roles = {"lm_head.weight", "model.embed_tokens.weight"} | {
        f"model.layers.{layer}.{path}.weight"
        for layer in (0, 1)
        for path in small.decoder.block_kind(layer).linears
    }
    assert {loss.tensor for loss in sensitivity.measured} == roles == kept.keys()
    model = small.model
    sequences = spread_sequences(small.sequences, run.MEASURED_TOKENS)

    def log_probabilities() -> torch.Tensor:
        with torch.no_grad():
            logits = [model(torch.tensor([ids])).logits[0] for ids in sequences]
        return torch.cat(logits).double().log_softmax(1)

    log_p = log_probabilities()
    for loss in sensitivity.measured:
        parameter = dict(model.named_parameters())[loss.tensor].detach()
        original = parameter.clone()
        parameter.copy_(kept[loss.tensor])
        kl = (log_p.exp() * (log_p - log_probabilities())).sum(1).mean().item()
        parameter.copy_(original)
        assert loss.measured_nats == pytest.approx(kl, rel=1e-2, abs=1e-7), loss
        correction = sensitivity.corrections[role(loss.tensor)]
        assert sensitivity.losses[loss.tensor][loss.grid] == pytest.approx(
            loss.predicted_nats * correction
        )


def role(name: str) -> str:
    ends = {"lm_head.weight": "head", "model.embed_tokens.weight": "embedding"}
    return ends.get(name) or name.removesuffix(".weight").split(".", 3)[3]


def test_a_tied_matrix_loses_as_embedding_and_as_head(
    tied: SensitivityCase, tmp_path: Path
) -> None:
    sensitivity = measure(tied, tmp_path)
    assert "lm_head.weight" not in sensitivity.losses
    (measured,) = (loss for loss in sensitivity.measured if "embed" in loss.tensor)
    assert 0.5 < measured.measured_nats / measured.predicted_nats < 2


class _StopAfter(SilentReporter):
    """Ctrl-C as a bar of that name advances for the n-th time."""

    def __init__(self, bar: str, steps: int) -> None:
        self.bar, self.steps = bar, steps

    @contextmanager
    def progress(self, total: int, description: str, /) -> Iterator[Progress]:
        yield self if description == self.bar else super().progress(total, "").__enter__()

    def advance(self, steps: int = 1) -> None:
        self.steps -= steps
        if self.steps <= 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_gives_the_same_bits(tied: SensitivityCase, tmp_path: Path) -> None:
    whole = measure(tied, tmp_path / "whole")
    folder = tmp_path / "interrupted"
    bars = {"hidden states": 3, "losses of the grids": 4, "measured losses": 4}
    for bar, steps in bars.items():
        for step in range(1, steps + 1):
            with pytest.raises(KeyboardInterrupt):
                measure(tied, folder, _StopAfter(bar, step))
    assert measure(tied, folder) == whole
    assert [path.name for path in folder.iterdir()] == [run.RESULT], "scratch is removed"

    def unread(name: str) -> torch.Tensor:
        raise AssertionError(name)

    again = measure_sensitivity(
        tied.decoder, unread, {}, Method(), tied.calibration, folder, SilentReporter()
    )
    assert again == whole


def test_finished_blocks_are_not_loaded_again(tied: SensitivityCase, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure(tied, tmp_path, _StopAfter("losses of the grids", 2))
    decoder = _Watched(tied)
    measure(tied, tmp_path, decoder=decoder)
    # Block 1 has its losses; block 0 follows; then both are passed by the variants.
    assert decoder.loaded == [0, 0, 1]


class _Watched(Decoder):
    """Knows which blocks were loaded, and that none was alive as the next one came."""

    def __init__(self, case: SensitivityCase) -> None:
        super().__init__(case.checkpoint.path, case.checkpoint.architecture, torch.device("cpu"))
        self.loaded: list[int] = []
        self._alive: list[weakref.ref[torch.Tensor]] = []

    def load_block(self, layer: int, source: WeightSource) -> dict[str, torch.Tensor]:
        assert not any(reference() is not None for reference in self._alive)
        parameters = super().load_block(layer, source)
        self._alive = [weakref.ref(tensor) for tensor in parameters.values()]
        self.loaded.append(layer)
        return parameters


def test_one_block_is_in_memory_at_a_time(tied: SensitivityCase, tmp_path: Path) -> None:
    decoder = _Watched(tied)
    measure(tied, tmp_path, decoder=decoder)
    assert decoder.loaded == [0, 1, 1, 0, 0, 1]


def test_corrections_lean_towards_the_mean_of_the_blocks() -> None:
    def loss(ratio: float) -> MeasuredLoss:
        return MeasuredLoss(tensor="", grid="Q4_0", predicted_nats=1e-4, measured_nats=ratio * 1e-4)

    corrections = role_corrections(
        [("up", loss(1.0)), ("up", loss(2.25)), ("head", loss(1e6)), ("down", loss(-0.001))]
    )
    # ln 1, ln 2.25 and a measurement at the bound -ln 4; the head leans towards no correction.
    mean = (math.log(2.25) - math.log(4)) / 3
    assert corrections == pytest.approx(
        {
            "up": math.exp((math.log(2.25) + 2 * mean) / 4),
            "head": math.exp(math.log(4) / 3),
            "down": math.exp((-math.log(4) + 2 * mean) / 3),
        }
    )
