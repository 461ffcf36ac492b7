"""A series as a plot: time on logarithmic axes beside a straight line, memory from zero."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.growth.results import Run
from benchmarks.growth.series import Series

MB, BILLION, KIB = 1e6, 1e9, 1024


def draw(series: Series, runs: Sequence[Run], path: Path) -> None:
    """Write an SVG; the same runs give the same bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    amounts = [run.point.amount for run in runs]
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    time, memory = figure.subplots(1, 2)
    time.plot(amounts, [run.cost.wall_s for run in runs], "o-", label="wall")
    time.plot(amounts, [run.cost.cpu_s for run in runs], "s-", label="CPU, all processes")
    last = runs[-1]
    linear_s = [last.cost.cpu_s * each / last.point.amount for each in amounts]
    time.plot(amounts, linear_s, "--", color="gray", label="linear, through the last")
    time.set(xscale="log", yscale="log", xlabel=series.unit, ylabel="seconds")
    memory.plot(amounts, [run.cost.tree_rss_bytes / MB for run in runs], "o-", label="RSS")
    held = [run.cost.tree_bytes / MB for run in runs]
    memory.plot(amounts, held, "s-", label="without mapped files")
    memory.set(xscale="log", xlabel=series.unit, ylabel="peak memory (MB)")
    memory.set_ylim(bottom=0)
    for axes in (time, memory):
        axes.set_xticks(amounts, labels=list(map(short, amounts)))
        axes.xaxis.minorticks_off()
        axes.legend(fontsize="small", loc="lower right")
    figure.suptitle(series.title, fontsize="medium")
    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})


def short(amount: int) -> str:
    """Billions of weights, thousands (1024) of tokens, or as it is."""
    if amount >= BILLION / 100:
        return f"{amount / BILLION:.1f}B"
    return f"{amount // KIB}k" if amount >= KIB else str(amount)
