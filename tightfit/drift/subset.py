r"""Problems with known answers, and the `--subset` option that chooses among them.

    SOURCE[:key=value,...]      math500:n=64,level=4-5,seed=0

SOURCE is `embedded` (the problems that ship with tiny-r1), `math500` (MATH-500 of Lightman et al.,
2023, from the Hub) or a JSON-lines file with the fields of MATH-500. Filters come first, then `n`
problems are drawn with `seed`, and kept in the order of the source. The SHA-256 of the chosen
problems identifies the subset in reports: equal hashes mean the same questions in the same order.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tightfit.errors import DriftError, UsageError

EMBEDDED = "embedded"
MATH500 = "math500"
MATH500_REPO = "HuggingFaceH4/MATH-500"
MATH500_FILE = "test.jsonl"
EMBEDDED_FILE = Path("embedded", "tiny-r1", "heldout.jsonl")
KEYS = ("n", "level", "subject", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem, with the fields of MATH-500."""

    problem: str
    solution: str
    answer: str
    subject: str
    level: int
    """1 (easiest) to 5."""
    unique_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetSpec:
    """A parsed `--subset`."""

    source: str
    """`embedded`, `math500`, or the path of a JSON-lines file."""
    n: int | None = None
    """How many problems; None: all that pass the filters."""
    levels: tuple[int, int] | None = None
    """Lowest and highest level, both included."""
    subject: str | None = None
    """As written in the data, any case."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """Chosen problems."""

    spec: SubsetSpec
    problems: tuple[Problem, ...]
    sha256: str
    """Of the chosen problems as canonical JSON lines."""


def parse_spec(text: str) -> SubsetSpec:
    """Read a `--subset` value; raises `UsageError` for an unknown key or a bad number."""
    head, colon, tail = text.rpartition(":")
    # A path may hold a colon; options always hold an equals sign.
    source, options = (head, tail) if colon and "=" in tail else (text, "")
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
    if not source:
        raise UsageError(f"--subset {text!r} names no source", allowed=_sources())
    low, dash, high = values.get("level", "").partition("-")
    return SubsetSpec(
        source=source,
        n=_whole_number(text, "n", values["n"], 1) if "n" in values else None,
        levels=(
            _whole_number(text, "level", low, 1),
            _whole_number(text, "level", high if dash else low, 1),
        )
        if low
        else None,
        subject=values.get("subject"),
        seed=_whole_number(text, "seed", values.get("seed", "0"), 0),
    )


def load_subset(spec: SubsetSpec) -> Subset:
    """Read the source and choose; raises `DriftError` when nothing is left."""
    problems = _read_problems(_locate(spec.source))
    kept = [problem for problem in problems if _passes(problem, spec)]
    if not kept or (spec.n is not None and spec.n > len(kept)):
        levels = sorted({problem.level for problem in problems})
        subjects = sorted({problem.subject for problem in problems})
        raise DriftError(
            f"{len(kept)} of the {len(problems)} problems in {spec.source} pass the filters"
            + (f", and n={spec.n} were asked for" if spec.n else ""),
            allowed=f"levels: {', '.join(map(str, levels))}; subjects: {', '.join(subjects)}",
            hint="relax level or subject, or ask for fewer problems",
        )
    if spec.n is not None:
        chosen = sorted(random.Random(spec.seed).sample(range(len(kept)), spec.n))
        kept = [kept[index] for index in chosen]
    return Subset(spec=spec, problems=tuple(kept), sha256=hash_problems(kept))


def hash_problems(problems: Sequence[Problem]) -> str:
    """SHA-256 of problems as JSON lines with sorted keys."""
    digest = hashlib.sha256()
    for problem in problems:
        line = json.dumps(asdict(problem), sort_keys=True, ensure_ascii=True)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _passes(problem: Problem, spec: SubsetSpec) -> bool:
    if spec.levels and not spec.levels[0] <= problem.level <= spec.levels[1]:
        return False
    return spec.subject is None or problem.subject.casefold() == spec.subject.casefold()


def _locate(source: str) -> Path:
    if source == EMBEDDED:
        import tightfit.calib

        return Path(tightfit.calib.__path__[0]) / EMBEDDED_FILE
    if source == MATH500:
        return _download_math500()
    path = Path(source)
    if not path.is_file():
        raise UsageError(f"--subset: {source!r} is not a file", allowed=_sources())
    return path


def _download_math500() -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(MATH500_REPO, MATH500_FILE, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DriftError(
            f"MATH-500 could not be downloaded from {MATH500_REPO}: {error}",
            hint="connect to the Hub once (the file is then cached), or give a local copy: "
            "--subset FILE.jsonl",
        ) from error


def _read_problems(path: Path) -> list[Problem]:
    problems = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            problem = Problem(**{name: fields[name] for name in Problem.__dataclass_fields__})
            if not isinstance(problem.level, int):  # the first MATH files say "Level 5"
                raise TypeError(f"level {problem.level!r} is not a whole number")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DriftError(
                f"{path}, line {number}: {type(error).__name__}: {error}",
                allowed="one JSON object a line with " + ", ".join(Problem.__dataclass_fields__),
                hint="the fields of MATH-500",
            ) from error
        problems.append(problem)
    return problems


def _whole_number(text: str, key: str, value: str, lowest: int) -> int:
    if not value.isdecimal() or int(value) < lowest:
        raise UsageError(
            f"--subset {text!r}: {key}={value!r}",
            allowed=f"{key} is a whole number from {lowest}"
            + (", or a range such as 4-5" if key == "level" else ""),
        )
    return int(value)


def _sources() -> str:
    return f"sources: {EMBEDDED}, {MATH500}, or a JSON-lines file with the fields of MATH-500"
