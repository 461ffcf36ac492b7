"""What a user should know of how the linears were quantized, in few lines whatever the model."""

from collections.abc import Sequence

from tightfit.pipeline.job import LinearReport
from tightfit.pipeline.quantize import Method
from tightfit.reporter import Reporter

FEW_OWN = 0.5
"""Below this share of its own tokens an expert's Hessian is mostly that of its block."""
_SHOWN = 3


def warn_of_reports(reports: Sequence[LinearReport], method: Method, reporter: Reporter) -> None:
    """Warn of damping, of inputs that were never active, and of experts that few tokens visited."""
    asked = method.gptq.damp_fraction
    for report in reports:
        if report.tokens is not None:
            continue
        if report.damp is not None and report.damp > asked:
            reporter.warning(
                f"{report.name}: its Hessian needed damping {report.damp:g} instead of {asked:g}; "
                "more calibration text would help"
            )
        if report.dead_columns:
            reporter.warning(
                f"{report.name}: input channels that no token made active: {report.dead_columns}"
            )
    _warn_of_experts(reports, asked, reporter)


def _warn_of_experts(reports: Sequence[LinearReport], asked: float, reporter: Reporter) -> None:
    experts = [report for report in reports if report.tokens is not None]
    gates = [report for report in experts if ".gate_proj." in report.name]
    unseen = [report for report in gates if report.tokens == 0]
    few = [r for r in gates if r.tokens and r.own_share is not None and r.own_share < FEW_OWN]
    damped = [r for r in experts if r.damp is not None and r.damp > asked]
    for found, what in (
        (unseen, "no calibration token visited; they were quantized on all tokens of their block"),
        (few, "so few tokens visited that mostly the statistics of their block count"),
        (damped, f"needed more damping than {asked:g}"),
    ):
        if found:
            names = ", ".join(report.name for report in found[:_SHOWN])
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            reporter.warning(
                f"routed experts that {what}: {names}{more} of {len(gates)}; more calibration "
                "text would help, and the manifest lists the tokens of each"
                if found is not damped
                else f"experts' matrices that {what}: {names}{more}"
            )
