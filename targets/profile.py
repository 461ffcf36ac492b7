"""Hardware targets: data files in `profiles/`, one TOML per target, read through one schema.

Every figure carries its source in the file itself. All sizes are binary (GiB) but bandwidths, which
makers state in decimal GB/s. `docs/targets.md` explains the fields, `profile_rules.py` holds what
they may be.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from tightfit.errors import UsageError
from tightfit.targets.memory_use import GIB
from tightfit.targets.profile_rules import FIRST_CAPABILITY, SEE_PROFILES, check_fields

_NEAREST: Mapping[str, tuple[tuple[str, str], ...]] = {
    "fp8": (
        ("Q8_0", "q8_0"),
        ("int8-g128-sym", "int8-g128"),
        ("int8-channel-sym", "int8-channel"),
        ("int4-g128-sym", "int4-g128"),
    ),
    # MXFP4 has blocks of 32 and NVFP4 of 16: the smallest group of INT4 comes nearest.
    "fp4": (
        ("Q4_K", "q4_k_m"),
        ("int4-g32-sym", "int4-g32"),
        ("int4-g64-sym", "int4-g64"),
        ("int4-g128-sym", "int4-g128"),
        ("fp8-e4m3-tensor", "fp8-tensor"),
    ),
}
"""Number type to grids of as many bits with their schemes; the first that is executed is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A machine that an artifact is made for."""

    name: str
    description: str
    kind: str
    """`gpu`: weights live on the card, the token table in host memory; `cpu`: all in memory."""
    device_count: int
    """Over all nodes."""
    node_count: int
    """Machines; each has as many devices."""
    memory_gib: float
    """Memory of one device: as the driver counts it, where that is less than it is sold with."""
    unified_memory: bool
    """Host and GPU share one memory: the token table takes of it, too."""
    reserved_gib: float
    """What driver, display and system take of one device before any model is loaded."""
    runtime_overhead_gib: float
    """What the runtime takes of one device beside weights, KV cache and compute buffers."""
    bandwidth_gb_s: float
    """Peak memory bandwidth of one device, in 10**9 bytes a second."""
    interconnect: str | None
    """What connects several devices; None for one."""
    interconnect_gb_s: float | None
    """Between two devices of a node, one direction, in 10**9 bytes a second; None for one."""
    compute_capability: str | None
    """NVIDIA's, e.g. `8.6`; None for a CPU."""
    tensor_types: tuple[str, ...]
    """Number types that its matrix units multiply."""
    runtimes: Mapping[str, tuple[str, ...]]
    """Runtime to the grids it executes here natively, as shell patterns over grid names. What is
    absent does not run here, and no artifact is made for it."""
    notes: Mapping[str, str]
    """By format: what a user of it should know here, or what to use in its place."""
    sources: Mapping[str, str]
    """Field to where its figure comes from."""

    @property
    def device_available_bytes(self) -> int:
        """Memory left for the runtime and the model on one device."""
        return int((self.memory_gib - self.reserved_gib) * GIB)

    @property
    def available_bytes(self) -> int:
        """The same of all devices together."""
        return self.device_available_bytes * self.device_count

    @property
    def device_overhead_bytes(self) -> int:
        """The runtime's own share of one device."""
        return int(self.runtime_overhead_gib * GIB)

    def executes(self, runtime: str, grid: str) -> bool:
        """Whether the runtime executes the grid on this target."""
        return any(fnmatchcase(grid, pattern) for pattern in self.runtimes.get(runtime, ()))

    def check_grid(self, runtime: str, grid: str) -> None:
        """Raise `UsageError` when the runtime cannot execute the grid here.

        It has the reason, what the runtime executes, and what comes nearest.
        """
        if not self.executes(runtime, grid):
            raise self._refusal(runtime, grid)

    def check_fp4(self, runtime: str, name: str) -> None:
        """Raise `UsageError` for a scheme or grid of FP4 (`nvfp4`, `mxfp4`, `fp4`), on any target.

        Before Blackwell no tensor core knows FP4, and tightfit writes no FP4 grid for those that
        do. Other names pass.
        """
        if _number_type(name) == "fp4":
            raise self._refusal(runtime, name)

    def _refusal(self, runtime: str, grid: str) -> UsageError:
        number_type = _number_type(grid)
        others = [name for name in self.runtimes if self.executes(name, grid)]
        hint = f"runtimes that execute {grid} here: {', '.join(others) or 'none'}"
        for nearest, scheme in _NEAREST.get(number_type, ()):
            if self.executes(runtime, nearest):
                hint = f"nearest in {runtime} here: --scheme {scheme}; {hint}"
                break
        return UsageError(
            f"{self.name} cannot execute the grid {grid} in {runtime}: "
            + self._reason(runtime, number_type),
            allowed=f"{runtime} executes here: {', '.join(self.runtimes.get(runtime, ())) or '-'}",
            hint=hint,
        )

    def _reason(self, runtime: str, number_type: str) -> str:
        unwritten = "tightfit writes no FP4 grid"
        first = FIRST_CAPABILITY.get(number_type)
        if first and self.kind == "gpu" and number_type not in self.tensor_types:
            return (
                f"its tensor cores know {', '.join(self.tensor_types)}, not {number_type} (compute "
                f"capability {self.compute_capability}; {number_type} needs {first})"
                + (f", and {unwritten}" if number_type == "fp4" else "")
            )
        if runtime not in self.runtimes:
            return f"{runtime} is not a runtime of this target"
        return unwritten if number_type == "fp4" else f"{runtime} has no kernel for it there"


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
            hint="`tightfit targets` shows what each one is; --target-file takes a profile of "
            "your own",
        )
    return _built_in(name)


def read_target_file(path: Path) -> Target:
    """The target of a user's own profile, named as the file without `.toml`.

    Raises `UsageError` for a file that cannot be read, for a wrong profile, and for a name that
    tightfit has given already: results carry the name, and it must mean one machine.
    """
    path = path.expanduser()
    name = path.name.removesuffix(".toml")
    if name in list_targets():
        raise UsageError(
            f"{path} has the name of a target of tightfit, {name!r}",
            allowed="any other file name: it becomes the target's name",
            hint=f"call the file my-{name}.toml, or use --target {name}",
        )
    return read_profile(name, path)


def choose_target(name: str | None, path: Path | None) -> Target:
    """The target that `--target` names or `--target-file` holds; exactly one must be given."""
    if name is not None and path is not None:
        raise UsageError(
            f"--target {name} and --target-file {path} name two machines",
            allowed="one of the two",
            hint="leave one out",
        )
    if path is not None:
        return read_target_file(path)
    if name is None:
        raise UsageError(
            "no target was given: --target NAME or --target-file FILE",
            allowed="targets: " + ", ".join(list_targets()),
            hint="`tightfit targets` shows what each one is",
        )
    return load_target(name)


def read_profile(name: str, source: Traversable) -> Target:
    """Read and validate a profile; raises `UsageError` naming the field, its value and the rule."""
    try:
        # Editors on Windows may put a byte order mark before the text.
        fields = tomllib.loads(source.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(
            f"profile {source} cannot be read: {error.strerror}",
            allowed="a TOML file with the fields of a profile",
            hint="docs/targets.md says how to write one",
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"profile {name!r} is not UTF-8: {error.reason} at byte {error.start}",
            allowed="TOML is text in UTF-8",
            hint="save the file as UTF-8",
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"profile {name!r} is not valid TOML: {error}",
            allowed="the fields of a profile are those of `tightfit.targets.profile.Target`",
            hint=SEE_PROFILES,
        ) from error
    return parse_profile(name, fields)


def parse_profile(name: str, fields: Mapping[str, Any]) -> Target:
    """Validate the fields of a profile; raises `UsageError`."""
    check_fields(name, fields)
    speed = fields.get("interconnect_gb_s")
    return Target(
        name=name,
        description=fields["description"],
        kind=fields["kind"],
        device_count=fields["device_count"],
        node_count=fields.get("node_count", 1),
        memory_gib=float(fields["memory_gib"]),
        unified_memory=fields.get("unified_memory", False),
        reserved_gib=float(fields["reserved_gib"]),
        runtime_overhead_gib=float(fields["runtime_overhead_gib"]),
        bandwidth_gb_s=float(fields["bandwidth_gb_s"]),
        interconnect=fields.get("interconnect"),
        interconnect_gb_s=None if speed is None else float(speed),
        compute_capability=fields.get("compute_capability"),
        tensor_types=tuple(fields["tensor_types"]),
        runtimes=_tuples(fields["runtimes"]),
        notes=dict(fields.get("notes", {})),
        sources=dict(fields["sources"]),
    )


@cache
def _built_in(name: str) -> Target:
    return read_profile(name, files("tightfit.targets") / "profiles" / f"{name}.toml")


def _number_type(grid: str) -> str:
    """`fp8` or `fp4` for a grid (or scheme) of such floats, else nothing."""
    return next((kind for kind in _NEAREST if kind in grid.lower()), "")


def _tuples(lists: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(texts) for key, texts in lists.items()}
