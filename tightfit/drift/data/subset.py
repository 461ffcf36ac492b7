r"""The options `--subset` and `--dataset`: which problems are asked.

    --subset SOURCE[:key=value,...]                    math500:n=64,level=4-5,seed=0
    --dataset SOURCE --subset key=value,...            n=64,level=4-5

Sources are those of `sources`. Filters (`level`, `subject`) come first; then `n` problems are drawn
with `seed`, stratified by level and subject (`stratify`), and kept in the order of the source.

The SHA-256 of the chosen problems identifies a subset in reports and in kept baselines. It is over
one line of JSON, `[unique_id, problem, answer]` in ASCII, for each problem in its order: equal
hashes mean the same questions with the same gold answers in the same order, wherever they were
read from and whatever else their rows hold.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tightfit.drift.data.problem import Problem
from tightfit.drift.data.sources import EMBEDDED, allowed_sources, read_source
from tightfit.drift.data.stratify import draw, seeded_key
from tightfit.errors import DriftError, UsageError

KEYS = ("n", "level", "subject", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetSpec:
    """Which problems are asked for."""

    source: str
    """As given: a name of the registry, a Hub id or the path of a file."""
    n: int | None = None
    """How many problems; None: all that pass the filters."""
    levels: tuple[int, int] | None = None
    """Lowest and highest level, both included."""
    subject: str | None = None
    """As written in the data, any case."""
    seed: int = 0
    """Of the draw, and of the order in which problems are visited."""

    @property
    def text(self) -> str:
        """The `--subset` that asks for the same."""
        levels = self.levels and "-".join(map(str, sorted(set(self.levels))))
        given = {"n": self.n, "level": levels, "subject": self.subject, "seed": self.seed or None}
        options = ",".join(f"{key}={value}" for key, value in given.items() if value is not None)
        return f"{self.source}:{options}" if options else self.source


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """Chosen problems."""

    spec: SubsetSpec
    problems: tuple[Problem, ...]
    sha256: str
    """`hash_problems` of them."""

    def shuffled(self) -> "Subset":
        """The same problems in an order drawn with `spec.seed`, independent of which were drawn.

        Deterministic: by SHA-256 of seed and unique id, so the same set has the same order on every
        machine. The hash is that of the new order. A sequential test needs it: sources are ordered
        by subject or difficulty, and the first problems would not stand for all.
        """
        problems = sorted(
            self.problems, key=lambda each: seeded_key(self.spec.seed, "visit", each.unique_id)
        )
        return replace(self, problems=tuple(problems), sha256=hash_problems(problems))


def parse_spec(subset: str | None, *, dataset: str | None = None) -> SubsetSpec:
    """Read `--subset` and `--dataset`; neither: the embedded problems.

    Raises `UsageError` for an unknown key, a bad number, or a source that is named twice or never.
    """
    if not subset:
        return SubsetSpec(source=dataset or EMBEDDED)
    head, colon, tail = subset.rpartition(":")
    if not colon and subset.partition("=")[0] in KEYS:
        source, options = dataset, subset
    else:
        # A path may hold a colon; options always hold an equals sign.
        source, options = (head, tail) if colon and "=" in tail else (subset, "")
        if dataset is not None:
            raise UsageError(
                f"--dataset {dataset!r} and --subset {subset!r} both name a source",
                allowed="with --dataset, --subset holds only "
                + ", ".join(f"{name}=..." for name in KEYS),
                hint=f"--dataset {dataset}" + (f" --subset {options}" if options else ""),
            )
    if not source:
        raise UsageError(
            f"--subset {subset!r} names no source",
            allowed=allowed_sources(),
            hint=f"for example --subset math500:{options}, or --dataset math500 beside it",
        )
    return _with_options(source, subset, options)


def _with_options(source: str, text: str, options: str) -> SubsetSpec:
    values: dict[str, str] = {}
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        if key not in KEYS or key in values or not value:
            raise UsageError(
                f"--subset {text!r}: {option!r} is not an option, or is given twice",
                allowed="options: " + ", ".join(f"{name}=..." for name in KEYS),
                hint="for example math500:n=64,level=4-5,seed=0",
            )
        values[key] = value
    return SubsetSpec(
        source=source,
        n=_whole_number(text, "n", values["n"], 1) if "n" in values else None,
        levels=_levels(text, values["level"]) if "level" in values else None,
        subject=values.get("subject"),
        seed=_whole_number(text, "seed", values.get("seed", "0"), 0),
    )


def load_subset(spec: SubsetSpec) -> Subset:
    """Read the source and choose.

    Raises `UsageError` for a source that does not exist, and `DriftError` for unusable data, for a
    filter on what the data do not hold, and where too few problems are left.
    """
    problems = read_source(spec.source)
    kept = _filtered(problems, spec)
    if not kept or (spec.n is not None and spec.n > len(kept)):
        raise DriftError(
            f"{len(kept)} of the {len(problems)} problems in {spec.source} pass the filters"
            + (f", and n={spec.n} were asked for" if spec.n else ""),
            allowed=_strata_in_words(problems),
            hint="relax level or subject, or ask for fewer problems",
        )
    if spec.n is not None:
        kept = draw(kept, spec.n, spec.seed)
    return Subset(spec=spec, problems=tuple(kept), sha256=hash_problems(kept))


def hash_problems(problems: Sequence[Problem]) -> str:
    """SHA-256 over what is asked and what is right, in order; see above."""
    digest = hashlib.sha256()
    for problem in problems:
        line = json.dumps([problem.unique_id, problem.problem, problem.answer])
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _filtered(problems: list[Problem], spec: SubsetSpec) -> list[Problem]:
    if spec.levels:
        low, high = spec.levels
        _require(spec, "level", sum(problem.level is None for problem in problems), len(problems))
        problems = [each for each in problems if each.level and low <= each.level <= high]
    if spec.subject is not None:
        _require(spec, "subject", sum(not problem.subject for problem in problems), len(problems))
        wanted = spec.subject.casefold()
        problems = [problem for problem in problems if problem.subject.casefold() == wanted]
    return problems


def _require(spec: SubsetSpec, field: str, n_without: int, n_problems: int) -> None:
    if n_without:
        raise DriftError(
            f"--subset {field}=...: {n_without} of {n_problems} problems in {spec.source} have "
            f"no {field}",
            allowed=f"filters on what every problem has, such as {field} in MATH-500",
            hint=f"leave {field} out",
        )


def _strata_in_words(problems: Sequence[Problem]) -> str:
    levels = sorted({problem.level for problem in problems if problem.level is not None})
    subjects = sorted({problem.subject for problem in problems if problem.subject})
    return (
        f"levels: {', '.join(map(str, levels)) or 'none'}; "
        f"subjects: {', '.join(subjects) or 'none'}"
    )


def _levels(text: str, value: str) -> tuple[int, int]:
    low, dash, high = value.partition("-")
    lowest = _whole_number(text, "level", low, 1)
    highest = _whole_number(text, "level", high, 1) if dash else lowest
    if lowest > highest:
        raise UsageError(
            f"--subset {text!r}: level={value!r} holds no level",
            allowed="the lowest level comes first",
            hint=f"level={highest}-{lowest}",
        )
    return lowest, highest


def _whole_number(text: str, key: str, value: str, lowest: int) -> int:
    if not (value.isascii() and value.isdecimal()) or int(value) < lowest:
        raise UsageError(
            f"--subset {text!r}: {key}={value!r}",
            allowed=f"{key} is a whole number from {lowest}"
            + (", or a range such as 4-5" if key == "level" else ""),
        )
    return int(value)
