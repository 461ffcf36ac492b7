"""The tables of figures: accuracy, token-level drift, size, reasoning, answers by grade."""

from collections.abc import Callable, Mapping, Sequence

from tightfit.drift.measures.reasoning import ReasoningHealth
from tightfit.drift.measures.tokens import CONFIDENT, TokenDrift
from tightfit.drift.page import numerals
from tightfit.drift.page.table import ABSENT, Cell, Row, Table, shared, short_names
from tightfit.drift.report import DriftReport
from tightfit.drift.statistics.paired import PairedAccuracy


def accuracy_table(reports: Sequence[DriftReport]) -> Table:
    """Accuracy of both models and the drop."""

    def row(label: str, note: str, cell: Callable[[PairedAccuracy], Cell]) -> Row:
        return Row(label=label, note=note, cells=tuple(cell(each.accuracy) for each in reports))

    limit = reports[0].limits.max_drop_points
    same_limit = all(report.limits.max_drop_points == limit for report in reports)
    return Table(
        caption="Accuracy",
        note="Intervals are two-sided, 90 %.",
        columns=short_names(reports),
        rows=(
            row("Problems", "", _sample),
            row("Baseline", "accuracy", lambda a: _share(a.baseline_accuracy, a.baseline_interval)),
            row("Artifact", "accuracy", lambda a: _share(a.artifact_accuracy, a.artifact_interval)),
            row(
                "Drop",
                f"points, limit {limit:g}" if same_limit else "points",
                lambda a: _drop(a.drop_points, a.drop_interval_points),
            ),
            row(
                "Bootstrap",
                "interval of the drop",
                lambda a: Cell(value=_points(a.bootstrap_interval_points)),
            ),
            row("Solved by baseline only", "", lambda a: _count(a.baseline_only)),
            row("Solved by artifact only", "", lambda a: _count(a.artifact_only)),
            row("McNemar p", "exact", lambda a: Cell(value=numerals.number(a.mcnemar_p, 2))),
        ),
    )


def token_table(reports: Sequence[DriftReport]) -> Table:
    """Drift of the artifacts beside the noise floor."""
    floors = shared(reports, "Noise floor", lambda report: report.noise_floor)
    drifts = [*(report.tokens for report in reports), *(floor.value for floor in floors)]

    def row(label: str, note: str, cell: Callable[[TokenDrift], Cell]) -> Row:
        cells = tuple(cell(drift) if drift else ABSENT for drift in drifts)
        return Row(label=label, note=note, cells=cells)

    def nats(value: float) -> Cell:
        return Cell(value=numerals.number(value))

    limit = reports[0].limits.max_kl_nats
    same_limit = all(report.limits.max_kl_nats == limit for report in reports)
    rows = (
        row("Tokens", "scored", _tokens),
        row("Mean KL", f"nats, limit {limit:g}" if same_limit else "nats", _mean_kl),
        row("Median KL", "", lambda d: nats(d.kl_median_nats)),
        row("90 % KL", "", lambda d: nats(d.kl_p90_nats)),
        row("99 % KL", "", lambda d: nats(d.kl_p99_nats)),
        row("99.9 % KL", "", lambda d: nats(d.kl_p999_nats)),
        row("Maximum KL", "", lambda d: nats(d.kl_max_nats)),
        row("Confident tokens", f"mean KL, baseline ≥ {100 * CONFIDENT:g} % sure", _confident_kl),
        row("Top-1 agreement", "", _top1),
        row("Top-1, confident", "", _confident_top1),
        row("Perplexity", "baseline", lambda d: _perplexity(d.baseline_perplexity)),
        row("Perplexity", "artifact", lambda d: _perplexity(d.artifact_perplexity)),
    )
    note = "KL divergence of each next-token distribution from the baseline's, in nats."
    if floors:
        note += (
            " The noise floor is the unquantized model in another runtime against itself: "
            "what arithmetic alone does."
        )
    names = (*short_names(reports), *(floor.name for floor in floors))
    return Table(caption="Token-level drift", note=note, columns=names, rows=rows)


def size_table(reports: Sequence[DriftReport]) -> Table:
    """What it costs."""
    facts = [report.artifact for report in reports]
    return Table(
        caption="Size",
        columns=short_names(reports),
        rows=(
            Row(
                label="Bits per weight",
                cells=tuple(
                    ABSENT
                    if fact.bits_per_weight is None
                    else Cell(value=numerals.fixed(fact.bits_per_weight, 2))
                    for fact in facts
                ),
            ),
            Row(
                label="Size",
                cells=tuple(
                    ABSENT
                    if fact.size_bytes is None
                    else Cell(value=numerals.size(fact.size_bytes))
                    for fact in facts
                ),
            ),
        ),
    )


def reasoning_table(reports: Sequence[DriftReport]) -> Table:
    """What hurts a reasoning model, baseline against artifact."""
    baselines = shared(reports, "Baseline", lambda report: report.reasoning.baseline)
    healths = [*(each.value for each in baselines), *(each.reasoning.artifact for each in reports)]

    def row(label: str, note: str, cell: Callable[[ReasoningHealth], Cell]) -> Row:
        return Row(label=label, note=note, cells=tuple(map(cell, healths)))

    def share(of: Callable[[ReasoningHealth], float]) -> Callable[[ReasoningHealth], Cell]:
        return lambda health: Cell(value=numerals.percent(of(health)))

    return Table(
        caption="Reasoning",
        note="Shares of all answers.",
        columns=(*(each.name for each in baselines), *short_names(reports)),
        rows=(
            row("Answers", "", lambda h: _count(h.n_answers)),
            row("Unclosed thoughts", "never end with </think>", share(lambda h: h.unclosed)),
            row("Truncated", "by the token limit", share(lambda h: h.truncated)),
            row("Loops", "end in a loop", share(lambda h: h.looping)),
            row("Repetition", "repeated n-grams, mean", share(lambda h: h.repetition)),
            row("Language mixing", "letters of another script", share(lambda h: h.mixing)),
            row("Length", "tokens, mean", lambda h: _count(round(h.mean_tokens))),
            Row(
                label="Length ratio",
                note="artifact by baseline, finished answers",
                cells=(*(ABSENT for _ in baselines), *map(_length_ratio, reports)),
            ),
        ),
    )


def grade_table(reports: Sequence[DriftReport]) -> Table:
    """Answers by grade."""
    baselines = shared(reports, "Baseline", lambda report: report.baseline_grades)
    counts = [*(each.value for each in baselines), *(each.artifact_grades for each in reports)]
    grades = list(dict.fromkeys(grade for grades in counts for grade in grades))

    def cell(grades: Mapping[str, int], grade: str) -> Cell:
        n, total = grades.get(grade, 0), sum(grades.values())
        return Cell(
            value=numerals.count(n), detail=numerals.percent(n / total) if n and total else ""
        )

    return Table(
        caption="Answers by grade",
        columns=(*(each.name for each in baselines), *short_names(reports)),
        rows=tuple(
            Row(label=words(grade).capitalize(), cells=tuple(cell(each, grade) for each in counts))
            for grade in grades
        ),
    )


def words(grade: str) -> str:
    """`no_answer` as words."""
    return grade.replace("_", " ")


def _sample(accuracy: PairedAccuracy) -> Cell:
    several = f"{accuracy.samples} answers each" if accuracy.samples > 1 else ""
    return Cell(value=numerals.count(accuracy.n), detail=several)


def _count(value: int) -> Cell:
    return Cell(value=numerals.count(value))


def _share(value: float, bounds: tuple[float, float]) -> Cell:
    low, high = (numerals.fixed(100 * bound) for bound in bounds)
    return Cell(value=numerals.percent(value), detail=numerals.interval(low, high))


def _drop(value: float, bounds: tuple[float, float]) -> Cell:
    return Cell(value=numerals.fixed(value, 2, sign=True), detail=_points(bounds))


def _points(bounds: tuple[float, float]) -> str:
    low, high = (numerals.fixed(bound, 2, sign=True) for bound in bounds)
    return numerals.interval(low, high)


def _tokens(drift: TokenDrift) -> Cell:
    return Cell(value=numerals.count(drift.n_tokens), detail=f"{drift.n_samples} traces")


def _mean_kl(drift: TokenDrift) -> Cell:
    bounds = drift.kl_interval_nats
    detail = numerals.numbers_interval(bounds) if bounds else "one trace, no interval"
    return Cell(value=numerals.number(drift.kl_mean_nats), detail=detail)


def _perplexity(value: float) -> Cell:
    return Cell(value=numerals.number(value, 4))


def _top1(drift: TokenDrift) -> Cell:
    stderr = drift.top1_agreement_stderr
    detail = "" if stderr is None else f"± {numerals.percent(stderr, 2)} s.e."
    return Cell(value=numerals.percent(drift.top1_agreement, 2), detail=detail)


def _confident_kl(drift: TokenDrift) -> Cell:
    if drift.confident is None:
        return ABSENT
    return Cell(
        value=numerals.number(drift.confident.kl_mean_nats),
        detail=f"99 %: {numerals.number(drift.confident.kl_p99_nats)}",
    )


def _confident_top1(drift: TokenDrift) -> Cell:
    if drift.confident is None:
        return ABSENT
    return Cell(value=numerals.percent(drift.confident.top1_agreement, 2))


def _length_ratio(report: DriftReport) -> Cell:
    ratio, bounds = report.reasoning.length_ratio, report.reasoning.length_ratio_interval
    if ratio is None:
        return ABSENT
    detail = numerals.numbers_interval(bounds) if bounds else ""
    return Cell(value=numerals.fixed(ratio, 2), detail=detail)
