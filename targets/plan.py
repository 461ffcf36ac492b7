"""The plan: which scheme of a model fits a target, decided before any weight is read.

Everything comes from the model's dimensions: shapes and the scheme give what each tensor is stored
as, that gives the bytes, and the memory models add what the runtime needs. Nothing is downloaded
and no torch is imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightfit.calib.dimensions import ModelDimensions
from tightfit.errors import UsageError
from tightfit.targets.alternatives import DEFAULT_CONTEXT_TOKENS, does_not_fit, refuse_oversized
from tightfit.targets.candidates import (
    LISTED,
    Candidate,
    Setting,
    check_scheme,
    list_candidates,
    parse_schemes,
    usual_precision,
)
from tightfit.targets.formats import DEFAULT_FORMAT, Format, find_format
from tightfit.targets.memory import size_text
from tightfit.targets.profile import Target, list_targets, load_target
from tightfit.targets.schemes.scheme import Scheme

__all__ = ["AUTO", "Plan", "checked_context", "make_plan", "refuse_oversized", "size_text"]

AUTO = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What will be made, and why."""

    model: str
    target: Target
    format: str
    runtime: str
    """What the figures are for."""
    context_tokens: int
    precision: str | None
    """What an ONNX graph computes in: `float16` or `float32`; None for a GGUF."""
    candidates: tuple[Candidate, ...]
    """All schemes that the target executes, largest first."""
    chosen: Candidate
    scheme: Scheme
    """The chosen one."""
    storage: Mapping[str, str]
    """Grid name, `F32`, `F16` or `BF16` of every tensor by checkpoint name."""
    reason: str


def make_plan(
    dimensions: ModelDimensions,
    target: Target,
    *,
    model: str,
    scheme: str = AUTO,
    context_tokens: int | None = None,
    format: str = DEFAULT_FORMAT,  # noqa: A002 - the name of the option
    head: str | None = None,
    embedding: str | None = None,
    precision: str | None = None,
) -> Plan:
    """Choose a scheme for the target.

    `auto` is the first of the target's preferred schemes of the format that fits; a named scheme is
    taken as it is. `context_tokens` defaults to `DEFAULT_CONTEXT_TOKENS`, or to the model's own
    limit if that is shorter; `head` and `embedding` override the scheme; `precision` of an ONNX
    graph is float16 for a GPU and float32 for a CPU. Raises `DoesNotFitError` when nothing asked
    for fits, `UsageError` for a scheme, a format or a context that does not exist or that the
    target cannot execute, `QuantizationError` for a scheme that the model's widths do not allow.
    """
    kind = find_format(format)
    _check_format(kind, target)
    setting = Setting(
        dimensions=dimensions,
        target=target,
        format=kind,
        precision=precision or usual_precision(kind, target),
        context_tokens=checked_context(dimensions, context_tokens),
    )
    asked = scheme != AUTO
    names = (scheme,) if asked else target.preferred_schemes[format]
    wanted = parse_schemes(names, kind, head, embedding)
    candidates = list_candidates(
        setting, _once([*wanted, *parse_schemes(LISTED[format], kind, head, embedding)])
    )
    by_name = {candidate.scheme: candidate for candidate in candidates}
    possible = [item for item in wanted if item.name in by_name]
    if not possible:
        check_scheme(setting, wanted[0])  # raises the reason why it was left out
    fitting = [item for item in possible if by_name[item.name].fits]
    if not fitting:
        raise does_not_fit(model, setting, possible, candidates)
    chosen = by_name[fitting[0].name]
    return Plan(
        model=model,
        target=target,
        format=format,
        runtime=kind.runtime,
        context_tokens=setting.context_tokens,
        precision=setting.precision,
        candidates=candidates,
        chosen=chosen,
        scheme=fitting[0],
        storage=check_scheme(setting, fitting[0]),
        reason=_why(chosen, wanted, setting, by_name, asked=asked) + _larger(chosen, candidates),
    )


def checked_context(dimensions: ModelDimensions, context_tokens: int | None) -> int:
    """The context to plan for; raises `UsageError` beyond the model's limit."""
    limit = dimensions.max_position_embeddings
    if context_tokens is None:
        return min(limit, DEFAULT_CONTEXT_TOKENS)
    if not 1 <= context_tokens <= limit:
        raise UsageError(
            f"a context of {context_tokens} tokens is not possible with this model",
            allowed=f"1 to {limit} tokens",
            hint="leave --context out to plan for a usual one",
        )
    return context_tokens


def _check_format(kind: Format, target: Target) -> None:
    """Refuse a format that the target's profile does not prefer any scheme of."""
    if kind.name in target.preferred_schemes:
        return
    able = [name for name in list_targets() if kind.name in load_target(name).preferred_schemes]
    reason = (
        f"{kind.runtime} runs on NVIDIA's GPUs only"
        if kind.name == "tensorrt" and target.kind == "cpu"
        else f"its profile names no scheme of {kind.label}"
    )
    raise UsageError(
        f"{kind.label} cannot be made for {target.name}: {reason}",
        allowed=f"formats for {target.name}: {', '.join(target.preferred_schemes)}",
        hint=f"targets for {kind.label}: {', '.join(able)}",
    )


def _once(schemes: Sequence[Scheme]) -> list[Scheme]:
    """Without the later ones that store the same: a method in a name changes no byte."""
    first = {(scheme.base, scheme.static_inputs): scheme for scheme in reversed(schemes)}
    return [scheme for scheme in schemes if first[scheme.base, scheme.static_inputs] is scheme]


def _why(
    chosen: Candidate,
    wanted: Sequence[Scheme],
    setting: Setting,
    by_name: Mapping[str, Candidate],
    *,
    asked: bool,
) -> str:
    target, note = setting.target, setting.target.notes.get(setting.format.name)
    about = "" if setting.format.name == "gguf" else "about "
    takes = (
        f"it takes {about}{size_text(chosen.memory.total_bytes)} of the "
        f"{size_text(target.available_bytes)} that {target.name} has for a model, at "
        f"{setting.context_tokens} tokens of context." + (f" {note}" if note else "")
    )
    if asked:
        return f"{chosen.scheme} was asked for and fits: {takes}"
    names = [scheme.name for scheme in wanted]
    if chosen.scheme == names[0]:
        return f"{chosen.scheme} is what {target.name} prefers, and it fits: {takes}"
    passed = names[: names.index(chosen.scheme)]
    too_big = ", ".join(name for name in passed if name in by_name)
    unlike = ", ".join(name for name in passed if name not in by_name)
    reasons = [f"{too_big} would not"] * bool(too_big)
    reasons += [f"the model's widths do not allow {unlike}"] * bool(unlike)
    return (
        f"{chosen.scheme} is the first of {target.name}'s preferred schemes that fits "
        f"({'; '.join(reasons)}): {takes}"
    )


def _larger(chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    larger = [
        candidate.scheme
        for candidate in candidates
        if candidate.fits and candidate.file_bytes > chosen.file_bytes
    ]
    return f" Larger ones that fit too: {', '.join(larger)}." if larger else ""
