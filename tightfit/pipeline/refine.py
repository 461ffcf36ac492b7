"""After calibration: plans of `--scheme auto` made again with losses measured on the model."""

from collections.abc import Sequence

from tightfit.calib.calibration import CalibrationSet
from tightfit.calib.checkpoint import Checkpoint
from tightfit.calib.decoder import Decoder
from tightfit.pipeline.device import usable_device
from tightfit.pipeline.job import Job
from tightfit.pipeline.requests import ExportRequest
from tightfit.pipeline.sensitivity.run import measure_sensitivity
from tightfit.reporter import Reporter
from tightfit.targets.mix import grid_choices
from tightfit.targets.plan import Plan, refine_plan

_FOLDER = "sensitivity"


def refine_plans(
    plans: tuple[Plan, ...],
    request: ExportRequest,
    checkpoint: Checkpoint,
    calibration: CalibrationSet,
    job: Job,
    reporter: Reporter,
) -> tuple[Plan, ...]:
    """The plans with measured losses where an allocation depends on them."""
    grids = judged_grids(plans)
    if not grids:
        return plans
    sensitivity = measure_sensitivity(
        Decoder(checkpoint.path, checkpoint.architecture, usable_device(request.device)),
        checkpoint.load,
        grids,
        request.method,
        calibration,
        job.path / _FOLDER,
        reporter,
    )
    return tuple(refine_plan(plan, sensitivity) if _is_open(plan) else plan for plan in plans)


def judged_grids(plans: Sequence[Plan]) -> dict[str, tuple[str, ...]]:
    """Grids to judge for each matrix: those that any of the formats chooses from."""
    union: dict[str, tuple[str, ...]] = {}
    for plan in filter(_is_open, plans):
        for name, grids in grid_choices(plan.setting, plan.overrides).items():
            union[name] = tuple(dict.fromkeys((*union.get(name, ()), *grids)))
    return union


def _is_open(plan: Plan) -> bool:
    """Whether an allocation depends on losses that can be measured.

    Of a mixture of experts they cannot: the backward pass would need all experts of a block.
    """
    mixture = plan.setting.dimensions.moe is not None
    return plan.mix is not None and plan.mix.binds and not mixture
