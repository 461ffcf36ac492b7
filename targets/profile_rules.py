"""What a profile may say: the fields, their rules, and the rules over several of them.

`check_fields` takes what TOML gave and raises `UsageError` with the field, its value and the rule.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NoReturn

from tightfit.errors import UsageError
from tightfit.targets.formats import FORMATS
from tightfit.targets.grids import FLOAT8, FLOAT_BYTES, INTEGERS
from tightfit.targets.schemes.ggml_types import GGML_GRIDS

RUNTIMES = tuple(dict.fromkeys(format_.runtime for format_ in FORMATS.values()))
"""What executes artifacts: of our formats, and of Hugging Face checkpoints."""
TENSOR_TYPES = ("f64", "f32", "tf32", "f16", "bf16", "fp8", "fp4", "int8", "int4")
FIRST_CAPABILITY: Mapping[str, str] = {"fp8": "8.9", "fp4": "10.0"}
"""Tensor type to the first compute capability that has it: Ada and Hopper, Blackwell."""
TENSORRT_RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""What engines are built for; a test holds them against `tightfit.export.tensorrt.support`."""
SOURCED_FIELDS = ("memory_gib", "reserved_gib", "runtime_overhead_gib", "bandwidth_gb_s")
"""Figures that a profile must give a source for, beside that of several devices."""
SEE_PROFILES = "correct the profile; docs/targets.md explains it, targets/profiles/ holds examples"

_MOST = 1e6
"""Above any figure of a device, in GiB and in GB/s."""
_MOST_DEVICES = 4096
_CAPABILITY = re.compile(r"\d{1,2}\.\d")
_INTERCONNECT_FIELDS = ("interconnect", "interconnect_gb_s")
_OPTIONAL = frozenset(
    {"compute_capability", "node_count", "unified_memory", "notes", *_INTERCONNECT_FIELDS}
)
_KNOWN_GRIDS = (*INTEGERS, *FLOAT8, *FLOAT_BYTES, *GGML_GRIDS)

_PLAIN_OF: Mapping[str, str] = {"llama.cpp": "F32", "onnxruntime": "F16", "tensorrt-rtx": "F16"}
"""By runtime: the float type that no artifact for it can do without."""


def check_fields(name: str, fields: Mapping[str, Any]) -> None:
    """Raise `UsageError` for the first field that is unknown, missing, wrong or contradicted."""
    unknown = sorted(set(fields) - set(_RULES))
    if unknown:
        raise UsageError(
            f"profile {name!r} has an unknown field {unknown[0]!r}",
            allowed="fields: " + ", ".join(_RULES),
            hint=SEE_PROFILES,
        )
    for field, (is_valid, rule) in _RULES.items():
        if field not in fields and field not in _OPTIONAL:
            raise UsageError(
                f"profile {name!r} lacks the field {field!r}",
                allowed=f"{field} must be {rule}",
                hint=SEE_PROFILES,
            )
        if field in fields and not is_valid(fields[field]):
            raise UsageError(
                f"profile {name!r}: {field} = {fields[field]!r} is not allowed",
                allowed=f"{field} must be {rule}",
                hint=SEE_PROFILES,
            )
    _check_memory(name, fields)
    _check_kind(name, fields)
    _check_devices(name, fields)
    _check_capability(name, fields)
    _check_runtimes(name, fields)
    _check_sources(name, fields)


def capability_number(capability: str) -> tuple[int, ...]:
    """`8.9` as (8, 9), which compares as NVIDIA counts: 8.9 is less than 10.0."""
    return tuple(int(part) for part in capability.split("."))


def _check_memory(name: str, fields: Mapping[str, Any]) -> None:
    taken_gib = fields["reserved_gib"] + fields["runtime_overhead_gib"]
    if taken_gib >= fields["memory_gib"]:
        _refuse(
            name,
            f"reserved_gib + runtime_overhead_gib = {taken_gib:g} leaves nothing",
            f"less than memory_gib = {fields['memory_gib']:g}",
        )


def _check_kind(name: str, fields: Mapping[str, Any]) -> None:
    kind = fields["kind"]
    if (kind == "gpu") != ("compute_capability" in fields):
        _refuse(
            name,
            f"compute_capability = {fields.get('compute_capability')!r} does not go with kind = "
            f"{kind!r}",
            "a gpu has a compute capability, a cpu has none",
        )
    if kind == "cpu" and fields["device_count"] > 1:
        _refuse(
            name,
            f"device_count = {fields['device_count']} does not go with kind = 'cpu'",
            "a cpu is one device with the memory of all its sockets",
        )
    if kind == "cpu" and fields.get("unified_memory"):
        _refuse(
            name,
            "unified_memory = True does not go with kind = 'cpu'",
            "it says that a gpu shares the memory of the host",
        )


def _check_devices(name: str, fields: Mapping[str, Any]) -> None:
    devices, nodes = fields["device_count"], fields.get("node_count", 1)
    if devices % nodes:
        _refuse(
            name,
            f"node_count = {nodes} does not divide device_count = {devices}",
            "device_count is over all nodes, and nodes have as many devices each",
        )
    for field in _INTERCONNECT_FIELDS:
        if devices > 1 and field not in fields:
            _refuse(
                name,
                f"{field} is missing beside device_count = {devices}",
                f"several devices are connected: {field} must be {_RULES[field][1]}",
            )
        if devices == 1 and field in fields:
            _refuse(
                name,
                f"{field} = {fields[field]!r} does not go with device_count = 1",
                "one device has no interconnect",
            )


def _check_capability(name: str, fields: Mapping[str, Any]) -> None:
    """Tensor types and engines that cards of this compute capability cannot have."""
    capability = fields.get("compute_capability")
    if capability is None:
        return
    for tensor_type, first in FIRST_CAPABILITY.items():
        has = tensor_type in fields["tensor_types"]
        if has and capability_number(capability) < capability_number(first):
            _refuse(
                name,
                f"tensor_types lists {tensor_type!r} beside compute_capability = {capability!r}",
                f"tensor cores know {tensor_type} from compute capability {first}",
            )
    if "tensorrt-rtx" in fields["runtimes"] and capability not in TENSORRT_RTX_CAPABILITIES:
        _refuse(
            name,
            f"runtimes lists 'tensorrt-rtx' beside compute_capability = {capability!r}",
            f"engines are built for {', '.join(TENSORRT_RTX_CAPABILITIES)}",
        )


def _check_runtimes(name: str, fields: Mapping[str, Any]) -> None:
    """Patterns that match no grid, and FP8 where no matrix unit multiplies it."""
    without_fp8 = fields["kind"] == "gpu" and "fp8" not in fields["tensor_types"]
    if fields["kind"] == "cpu" and "tensorrt-rtx" in fields["runtimes"]:
        _refuse(name, "runtimes lists 'tensorrt-rtx' beside kind = 'cpu'", "it needs a gpu")
    for runtime, patterns in fields["runtimes"].items():
        for pattern in patterns:
            matched = [grid for grid in _KNOWN_GRIDS if fnmatchcase(grid, pattern)]
            if not matched:
                _refuse(
                    name,
                    f"runtimes.{runtime} lists {pattern!r}, which is no grid",
                    "names or shell patterns such as " + ", ".join(_KNOWN_GRIDS[::9]),
                )
            if without_fp8 and any(grid in FLOAT8 for grid in matched):
                _refuse(
                    name,
                    f"runtimes.{runtime} lists {pattern!r}, but tensor_types has no 'fp8'",
                    "only what is executed natively: FP8 needs tensor cores that know it, from "
                    f"compute capability {FIRST_CAPABILITY['fp8']}",
                )
        plain = _PLAIN_OF.get(runtime)
        if plain and not any(fnmatchcase(plain, pattern) for pattern in patterns):
            _refuse(
                name,
                f"runtimes.{runtime} lacks {plain}",
                f"norms and biases are stored as {plain} there: add it",
            )


def _check_sources(name: str, fields: Mapping[str, Any]) -> None:
    sources = fields["sources"]
    odd = sorted(set(sources) - set(_RULES))
    if odd:
        _refuse(name, f"sources has an unknown field {odd[0]!r}", f"fields: {', '.join(_RULES)}")
    several = ("interconnect_gb_s",) if fields["device_count"] > 1 else ()
    for field in (*SOURCED_FIELDS, *several):
        if field not in sources:
            _refuse(
                name,
                f"sources lacks {field!r}",
                "a source for each of " + ", ".join((*SOURCED_FIELDS, *several)),
            )


def _refuse(name: str, problem: str, allowed: str) -> NoReturn:
    raise UsageError(f"profile {name!r}: {problem}", allowed=allowed, hint=SEE_PROFILES)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return 0.0 <= value < _MOST


def _is_positive(value: object) -> bool:
    return _is_number(value) and value != 0


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value <= _MOST_DEVICES


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_text(item) for item in value)


def _is_capability(value: object) -> bool:
    return isinstance(value, str) and _CAPABILITY.fullmatch(value) is not None


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


_COUNT_RULE = f"a whole number above 0, at most {_MOST_DEVICES}"
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "description": (_is_text, "a sentence"),
    "kind": (lambda value: value in ("gpu", "cpu"), "'gpu' or 'cpu'"),
    "device_count": (_is_count, f"{_COUNT_RULE}, over all nodes"),
    "node_count": (_is_count, _COUNT_RULE),
    "memory_gib": (_is_positive, "a number above 0, in GiB"),
    "unified_memory": (lambda value: isinstance(value, bool), "true or false"),
    "reserved_gib": (_is_number, "a number from 0, in GiB"),
    "runtime_overhead_gib": (_is_number, "a number from 0, in GiB"),
    "bandwidth_gb_s": (_is_positive, "a number above 0, in GB/s"),
    "interconnect": (_is_text, "text such as 'PCIe 4.0 x16'"),
    "interconnect_gb_s": (_is_positive, "a number above 0, in GB/s and one direction"),
    "compute_capability": (_is_capability, "NVIDIA's number as text, e.g. '8.6'"),
    "tensor_types": (
        lambda value: _is_texts(value) and set(value) <= set(TENSOR_TYPES),
        "a list of " + ", ".join(TENSOR_TYPES),
    ),
    "runtimes": (
        lambda value: _is_lists(value, RUNTIMES),
        f"a table of {', '.join(RUNTIMES)}, each a list of grid patterns",
    ),
    "notes": (_is_notes, f"a table of {', '.join(FORMATS)}, each a sentence"),
    "sources": (_is_sources, "a table of field = where its figure comes from"),
}
