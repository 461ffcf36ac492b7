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
    more = f"of {len(gates)}; more calibration text would help, and the manifest has the tokens"
    if unseen:
        reporter.warning(
            "routed experts that no calibration token visited, quantized on all tokens of their "
            f"block: {_names(unseen)} {more}"
        )
    if few:
        reporter.warning(
            "routed experts that so few tokens visited that mostly the statistics of their block "
            f"count: {_names(few)} {more}"
        )
    if damped:
        reporter.warning(f"experts that needed more damping than {asked:g}: {_names(damped)}")


def _names(reports: Sequence[LinearReport]) -> str:
    shown = ", ".join(report.name for report in reports[:_SHOWN])
    rest = len(reports) - _SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
