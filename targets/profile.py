"""Hardware targets: data files in `profiles/`, one TOML per target, read through one schema.

Every figure carries its source in the file itself. All sizes are binary (GiB) but bandwidth, which
makers state in decimal GB/s.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from tightfit.errors import UsageError
from tightfit.targets.formats import FORMATS

GIB = 1 << 30
RUNTIMES = tuple(format_.runtime for format_ in FORMATS.values())
TENSOR_TYPES = ("f64", "f32", "tf32", "f16", "bf16", "fp8", "fp4", "int8", "int4")
SOURCED_FIELDS = ("memory_gib", "reserved_gib", "runtime_overhead_gib", "bandwidth_gb_s")
"""Figures that a profile must give a source for."""
_SEE_PROFILES = "correct the profile; targets/profiles/ holds examples"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A machine that an artifact is made for."""

    name: str
    description: str
    kind: str
    """`gpu`: weights live on the card, the token table in host memory; `cpu`: all in memory."""
    device_count: int
    memory_gib: float
    """Memory of one device, as sold."""
    reserved_gib: float
    """What driver, display and system take of one device before any model is loaded."""
    runtime_overhead_gib: float
    """What the runtime takes of one device beside weights, KV cache and compute buffers."""
    bandwidth_gb_s: float
    """Peak memory bandwidth of one device, in 10**9 bytes a second."""
    compute_capability: str | None
    """NVIDIA's, e.g. `8.6`; None for a CPU."""
    tensor_types: tuple[str, ...]
    """Number types that its matrix units multiply."""
    preferred_schemes: Mapping[str, tuple[str, ...]]
    """By format: what `--scheme auto` tries, the first that fits wins. A format that is absent
    cannot be made for the target."""
    runtimes: Mapping[str, tuple[str, ...]]
    """Runtime to the grids it executes here, as shell patterns over grid names."""
    notes: Mapping[str, str]
    """By format: what a user of it should know here."""
    sources: Mapping[str, str]
    """Field to where its figure comes from."""

    @property
    def available_bytes(self) -> int:
        """Memory left for the runtime and the model, all devices together."""
        return int((self.memory_gib - self.reserved_gib) * GIB) * self.device_count

    @property
    def runtime_overhead_bytes(self) -> int:
        """The runtime's own share, all devices together."""
        return int(self.runtime_overhead_gib * GIB) * self.device_count

    def executes(self, runtime: str, grid: str) -> bool:
        """Whether the runtime executes the grid on this target."""
        return any(fnmatchcase(grid, pattern) for pattern in self.runtimes.get(runtime, ()))

    def check_grid(self, runtime: str, grid: str) -> None:
        """Raise `UsageError` with the reason when the runtime cannot execute the grid here."""
        if self.executes(runtime, grid):
            return
        able = [name for name in self.runtimes if self.executes(name, grid)]
        if grid.startswith("fp8") and "fp8" not in self.tensor_types and self.kind == "gpu":
            reason = (
                f"its tensor cores know {', '.join(self.tensor_types)}, not fp8 (compute "
                f"capability {self.compute_capability}; fp8 needs 8.9)"
            )
        elif runtime not in self.runtimes:
            reason = f"{runtime} is not a runtime of this target"
        else:
            reason = f"{runtime} has no kernel for it there"
        raise UsageError(
            f"{self.name} cannot execute the grid {grid} in {runtime}: {reason}",
            allowed=f"{runtime} executes here: {', '.join(self.runtimes.get(runtime, ())) or '-'}",
            hint=f"runtimes that execute {grid} here: {', '.join(able) or 'none'}",
        )


def list_targets() -> tuple[str, ...]:
    """Names of all targets, in alphabetical order."""
    folder = files("tightfit.targets") / "profiles"
    return tuple(
        sorted(
            item.name.removesuffix(".toml")
            for item in folder.iterdir()
            if item.name.endswith(".toml")
        )
    )


def load_target(name: str) -> Target:
    """The target of that name; raises `UsageError` when there is none."""
    if name not in list_targets():
        raise UsageError(
            f"there is no target named {name!r}",
            allowed="targets: " + ", ".join(list_targets()),
            hint="`tightfit targets` shows what each one is",
        )
    return read_profile(name, files("tightfit.targets") / "profiles" / f"{name}.toml")


def read_profile(name: str, source: Traversable) -> Target:
    """Read and validate a profile; raises `UsageError` naming the field, its value and the rule."""
    try:
        fields = tomllib.loads(source.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"profile {name!r} is not valid TOML: {error}",
            allowed="the fields of a profile are those of `tightfit.targets.profile.Target`",
            hint=_SEE_PROFILES,
        ) from error
    return parse_profile(name, fields)


def parse_profile(name: str, fields: Mapping[str, Any]) -> Target:
    """Validate the fields of a profile."""
    unknown = sorted(set(fields) - set(_RULES))
    if unknown:
        raise UsageError(
            f"profile {name!r} has an unknown field {unknown[0]!r}",
            allowed="fields: " + ", ".join(_RULES),
            hint=_SEE_PROFILES,
        )
    for field, (is_valid, rule) in _RULES.items():
        if field not in fields and field not in _OPTIONAL:
            raise UsageError(
                f"profile {name!r} lacks the field {field!r}",
                allowed=f"{field} must be {rule}",
                hint=_SEE_PROFILES,
            )
        if field in fields and not is_valid(fields[field]):
            raise UsageError(
                f"profile {name!r}: {field} = {fields[field]!r} is not allowed",
                allowed=f"{field} must be {rule}",
                hint=_SEE_PROFILES,
            )
    _check_together(name, fields)
    return Target(
        name=name,
        description=fields["description"],
        kind=fields["kind"],
        device_count=fields["device_count"],
        memory_gib=float(fields["memory_gib"]),
        reserved_gib=float(fields["reserved_gib"]),
        runtime_overhead_gib=float(fields["runtime_overhead_gib"]),
        bandwidth_gb_s=float(fields["bandwidth_gb_s"]),
        compute_capability=fields.get("compute_capability"),
        tensor_types=tuple(fields["tensor_types"]),
        preferred_schemes=_tuples(fields["preferred_schemes"]),
        runtimes=_tuples(fields["runtimes"]),
        notes=dict(fields.get("notes", {})),
        sources=dict(fields["sources"]),
    )


def _check_together(name: str, fields: Mapping[str, Any]) -> None:
    """Rules over several fields."""
    taken_gib = fields["reserved_gib"] + fields["runtime_overhead_gib"]
    if taken_gib >= fields["memory_gib"]:
        raise UsageError(
            f"profile {name!r}: reserved_gib + runtime_overhead_gib = {taken_gib:g} leaves nothing",
            allowed=f"less than memory_gib = {fields['memory_gib']:g}",
            hint=_SEE_PROFILES,
        )
    if (fields["kind"] == "gpu") != ("compute_capability" in fields):
        raise UsageError(
            f"profile {name!r}: compute_capability = {fields.get('compute_capability')!r} does not "
            f"go with kind = {fields['kind']!r}",
            allowed="a gpu has a compute capability, a cpu has none",
            hint=_SEE_PROFILES,
        )
    without = [
        format_
        for format_ in (*fields["preferred_schemes"], *fields.get("notes", {}))
        if FORMATS[format_].runtime not in fields["runtimes"]
    ]
    if without:
        raise UsageError(
            f"profile {name!r}: the format {without[0]!r} has no runtime",
            allowed=f"runtimes must list what {FORMATS[without[0]].runtime} executes",
            hint=_SEE_PROFILES,
        )
    missing = [field for field in SOURCED_FIELDS if not fields["sources"].get(field)]
    if missing:
        raise UsageError(
            f"profile {name!r}: sources lacks {missing[0]!r}",
            allowed="a source for each of " + ", ".join(SOURCED_FIELDS),
            hint=_SEE_PROFILES,
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: object, least: float) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return least <= value < float("inf")


def _is_positive(value: object) -> bool:
    return _is_number(value, 0.0) and value != 0


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_text(item) for item in value)


def _is_capability(value: object) -> bool:
    return _is_text(value) and all(part.isdecimal() for part in str(value).split("."))


def _is_lists(value: object, keys: Iterable[str]) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and set(value) <= set(keys)
        and all(_is_texts(texts) for texts in value.values())
    )


def _is_notes(value: object) -> bool:
    return _is_sources(value) and isinstance(value, dict) and set(value) <= set(FORMATS)


def _is_sources(value: object) -> bool:
    return isinstance(value, dict) and all(_is_text(text) for text in value.values())


def _tuples(lists: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(texts) for key, texts in lists.items()}


_OPTIONAL = frozenset({"compute_capability", "notes"})
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "description": (_is_text, "a sentence"),
    "kind": (lambda value: value in ("gpu", "cpu"), "'gpu' or 'cpu'"),
    "device_count": (lambda value: type(value) is int and value > 0, "a whole number above 0"),
    "memory_gib": (_is_positive, "a number above 0, in GiB"),
    "reserved_gib": (lambda value: _is_number(value, 0.0), "a number from 0, in GiB"),
    "runtime_overhead_gib": (lambda value: _is_number(value, 0.0), "a number from 0, in GiB"),
    "bandwidth_gb_s": (_is_positive, "a number above 0, in GB/s"),
    "compute_capability": (_is_capability, "NVIDIA's number as text, e.g. '8.6'"),
    "tensor_types": (
        lambda value: _is_texts(value) and set(value) <= set(TENSOR_TYPES),
        "a list of " + ", ".join(TENSOR_TYPES),
    ),
    "preferred_schemes": (
        lambda value: _is_lists(value, FORMATS),
        f"a table of {', '.join(FORMATS)}, each a list of scheme names, the preferred one first",
    ),
    "runtimes": (
        lambda value: _is_lists(value, RUNTIMES),
        f"a table of {', '.join(RUNTIMES)}, each a list of grid patterns",
    ),
    "notes": (_is_notes, f"a table of {', '.join(FORMATS)}, each a sentence"),
    "sources": (_is_sources, "a table of field = where its figure comes from"),
}
