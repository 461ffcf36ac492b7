"""Charts of token-level drift: along the position, its distribution, and against the size."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from tightfit.drift.measures.tokens import KL_FLOOR_POWER, Bin, TokenDrift
from tightfit.drift.page import numerals
from tightfit.drift.page.series import Series
from tightfit.drift.page.svg import LIMIT, MUTED, PAPER, chart, place, to_svg
from tightfit.drift.page.table import shared

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT_PX: Final = 230
LEFT_PX: Final = 40
"""Room for a tick label such as 10⁻³."""
BOTTOM_PX: Final = 40
"""Room for tick labels and the axis label."""
DASHED: Final = (0, (4, 3))
DOTTED: Final = (0, (1, 2))
POSITION_TICKS: Final = {1: "1", 10: "10", 100: "100", 1000: "1k", 10_000: "10k", 100_000: "100k"}


def position_chart(series: Sequence[Series]) -> Markup | None:
    """Mean KL by the token's place in the answer; None when no position differs."""
    lines = [(each, _positive(each.report.tokens)) for each in series]
    lines = [(each, bins) for each, bins in lines if bins]
    if not lines:
        return None
    with chart(HEIGHT_PX) as (figure, axes):
        for floor in _floors(series):
            bins = _positive(floor)
            axes.plot(
                [_middle(bin_) for bin_ in bins],
                [bin_.kl_mean_nats for bin_ in bins],
                color=MUTED,
                linestyle=DASHED,
                linewidth=1.2,
            )
        for each, bins in lines:
            axes.plot(
                [_middle(bin_) for bin_ in bins],
                [bin_.kl_mean_nats for bin_ in bins],
                color=each.colour,
                marker=each.marker,
                markeredgecolor=PAPER,
                markeredgewidth=0.8,
            )
        axes.set_xscale("log")
        farthest = max(bin_.high for _, bins in lines for bin_ in bins)
        ticks = [tick for tick in POSITION_TICKS if tick <= farthest]
        axes.set_xticks(ticks, [POSITION_TICKS[tick] for tick in ticks])
        axes.set_xlabel("token of the answer")
        _log_y(axes)
        place(axes, HEIGHT_PX, left=LEFT_PX, bottom=BOTTOM_PX)
        return to_svg(figure, name="position", label=_position_label(lines))


def distribution_chart(series: Sequence[Series]) -> Markup | None:
    """Share of tokens by power of ten of their KL; None when drift was not measured."""
    drifts = [(each, each.report.tokens) for each in series if each.report.tokens]
    if not drifts:
        return None
    floors = _floors(series)
    powers = [_power(bin_) for drift in floors for bin_ in drift.by_kl]
    powers += [_power(bin_) for _, drift in drifts if drift for bin_ in drift.by_kl]
    span = range(min(powers), max(powers) + 1)
    with chart(HEIGHT_PX) as (figure, axes):
        for floor in floors:
            axes.plot(
                span, _shares(floor, span), color=MUTED, linestyle=DASHED, linewidth=1.2, zorder=3
            )
        for each, drift in drifts:
            assert drift is not None
            if len(drifts) == 1:
                axes.bar(span, _shares(drift, span), width=0.72, color=each.colour)
            else:
                axes.plot(
                    span,
                    _shares(drift, span),
                    color=each.colour,
                    marker=each.marker,
                    markeredgecolor=PAPER,
                    markeredgewidth=0.8,
                )
        # Every second power: nine labels would touch each other.
        ticks = [power for power in span if (power - span[-1]) % 2 == 0]
        axes.set_xticks(ticks, [_power_label(power) for power in ticks])
        axes.set_xlim(span[0] - 0.6, span[-1] + 0.6)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda share, _place: f"{share:g} %")
        axes.locator_params(axis="y", nbins=5)
        axes.set_xlabel("KL of the token, from this power on, nats")
        place(axes, HEIGHT_PX, left=LEFT_PX, bottom=BOTTOM_PX)
        label = "Share of tokens by KL divergence. " + " ".join(
            f"{each.name}: {_distribution_label(drift)}" for each, drift in drifts if drift
        )
        return to_svg(figure, name="distribution", label=label)


def size_chart(series: Sequence[Series]) -> Markup | None:
    """Mean KL against bits per weight; None when no artifact has both."""
    points = [
        (each, each.report.artifact.bits_per_weight, each.report.tokens)
        for each in series
        if each.report.artifact.bits_per_weight is not None
        and each.report.tokens is not None
        and each.report.tokens.kl_mean_nats > 0
    ]
    if not points:
        return None
    sizes = [bits for _, bits, _ in points if bits is not None]
    with chart(HEIGHT_PX) as (figure, axes):
        for limit in {each.report.limits.max_kl_nats for each, _, _ in points}:
            axes.axhline(limit, color=LIMIT, linestyle=DOTTED, linewidth=1.4)
        for floor in _floors(series):
            if floor.kl_mean_nats > 0:
                axes.axhline(floor.kl_mean_nats, color=MUTED, linestyle=DASHED, linewidth=1.2)
        for each, bits, drift in points:
            assert bits is not None
            assert drift is not None
            low, high = drift.kl_interval_nats or (drift.kl_mean_nats,) * 2
            axes.plot([bits, bits], [max(low, drift.kl_mean_nats / 10), high], color=each.colour)
            axes.plot(
                bits,
                drift.kl_mean_nats,
                color=each.colour,
                marker=each.marker,
                markersize=7,
                markeredgecolor=PAPER,
                markeredgewidth=0.8,
            )
        axes.set_xlim(math.floor(min(sizes) - 0.5), math.ceil(max(sizes) + 0.5))
        axes.locator_params(axis="x", integer=True, nbins=6)
        axes.set_xlabel("bits per weight")
        _log_y(axes)
        place(axes, HEIGHT_PX, left=LEFT_PX, bottom=BOTTOM_PX)
        label = "Mean KL against bits per weight. " + " ".join(
            f"{each.name}: {bits:.2f} bits, {numerals.number(drift.kl_mean_nats)} nats."
            for each, bits, drift in points
            if drift
        )
        return to_svg(figure, name="size", label=label)


def _floors(series: Sequence[Series]) -> list[TokenDrift]:
    reports = [each.report for each in series]
    return [each.value for each in shared(reports, "", lambda report: report.noise_floor)]


def _positive(drift: TokenDrift | None) -> list[Bin]:
    """Bins that a logarithmic axis can show."""
    return [bin_ for bin_ in drift.by_position if bin_.kl_mean_nats > 0] if drift else []


def _middle(bin_: Bin) -> float:
    """Geometric middle of the whole numbers from `low` to below `high`."""
    return math.sqrt(max(bin_.low, 1) * max(bin_.high - 1, 1))


def _power(bin_: Bin) -> int:
    """The power of ten that the bin begins with; the one below the lowest for the bin from 0."""
    return round(math.log10(bin_.low)) if bin_.low > 0 else KL_FLOOR_POWER - 1


def _power_label(power: int) -> str:
    return "0" if power < KL_FLOOR_POWER else numerals.power_of_ten(power)


def _shares(drift: TokenDrift, span: range) -> list[float]:
    """Percent of the tokens in each power of `span`."""
    tokens = {_power(bin_): bin_.n_tokens for bin_ in drift.by_kl}
    total = sum(tokens.values())
    return [100 * tokens.get(power, 0) / total for power in span]


def _log_y(axes: "Axes") -> None:
    """A logarithmic axis over whole powers of ten, at most about five of them labelled."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = math.ceil((last - first) / 5)
    powers = range(first, last + 1, step)
    axes.set_ylim(10.0**first, 10.0**last)
    axes.set_yticks([10.0**power for power in powers], list(map(numerals.power_of_ten, powers)))


def _position_label(lines: Sequence[tuple[Series, list[Bin]]]) -> str:
    sentences = (
        f"{each.name}: {numerals.number(bins[0].kl_mean_nats)} nats at the first tokens, "
        f"{numerals.number(bins[-1].kl_mean_nats)} nats from token {bins[-1].low:.0f} on."
        for each, bins in lines
    )
    return "Mean KL by the place of the token in the answer. " + " ".join(sentences)


def _distribution_label(drift: TokenDrift) -> str:
    most = max(drift.by_kl, key=lambda bin_: bin_.n_tokens)
    total = sum(bin_.n_tokens for bin_ in drift.by_kl)
    return (
        f"most tokens, {numerals.percent(most.n_tokens / total)}, lie between "
        f"{numerals.number(most.low, 1)} and {numerals.number(most.high, 1)} nats."
    )
