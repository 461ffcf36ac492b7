"""The plan: which scheme of a model fits a target, decided before any weight is read.

Everything comes from the model's dimensions: shapes give the types of each scheme, types give the
bytes, and `memory` adds what the runtime needs. Nothing is downloaded and no torch is imported.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tightfit.calib.architecture import ARCHITECTURES, architecture_of
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.models import MODELS, KnownModel
from tightfit.errors import DoesNotFitError, UsageError
from tightfit.targets.candidates import RUNTIME, Candidate, list_candidates
from tightfit.targets.profile import GIB, Target, list_targets, load_target
from tightfit.targets.schemes.ggml_file_types import ggml_file_type

AUTO = "auto"
DEFAULT_CONTEXT_TOKENS = 8192
"""Reasoning traces are long: DeepSeek's protocol allows 32,768 tokens. A quarter of that lets the
8B distills keep 4 bits on 8 GB; `--context` asks for more."""
_BITS_PER_BYTE = 8
_FEWEST_BITS = 2.625
"""Q2_K's bits per weight (84 bytes for 256 weights), the smallest type that tightfit writes."""
_MIB = 1 << 20
_SHORTEST_USEFUL_TOKENS = 2048
"""No reasoning trace fits a shorter context, so none is offered as a way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What will be made, and why."""

    model: str
    target: Target
    context_tokens: int
    candidates: tuple[Candidate, ...]
    """All schemes that the target executes, largest first."""
    chosen: Candidate
    reason: str


def make_plan(
    dimensions: ModelDimensions,
    target: Target,
    *,
    model: str,
    scheme: str = AUTO,
    context_tokens: int | None = None,
) -> Plan:
    """Choose a scheme for the target.

    `auto` is the first of the target's preferred schemes that fits; a named scheme is taken as it
    is. `context_tokens` defaults to `DEFAULT_CONTEXT_TOKENS`, or to the model's own limit if that
    is shorter. Raises `DoesNotFitError` when nothing asked for fits, `UsageError` for a scheme or a
    context that does not exist or that the target cannot execute.
    """
    architecture = architecture_of(dimensions.model_type)
    context = checked_context(dimensions, context_tokens)
    wanted = target.preferred_schemes if scheme == AUTO else (_checked_scheme(scheme, target),)
    candidates = list_candidates(architecture, dimensions, target, context)
    by_scheme = {candidate.scheme: candidate for candidate in candidates}
    fitting = [name for name in wanted if by_scheme[name].fits]
    if not fitting:
        asked = [by_scheme[name] for name in wanted]
        raise _does_not_fit(model, dimensions, target, context, asked, candidates)
    chosen = by_scheme[fitting[0]]
    return Plan(
        model=model,
        target=target,
        context_tokens=context,
        candidates=candidates,
        chosen=chosen,
        reason=_why(chosen, wanted, target, context, asked=scheme != AUTO)
        + _larger(chosen, candidates),
    )


def refuse_oversized(model: KnownModel, target: Target) -> None:
    """Refuse a model whose weights exceed the target even in the smallest type.

    For the families that have no architecture here yet, whose exact plan cannot be made; raises
    `DoesNotFitError` on the bound parameters * bits of Q2_K.
    """
    least_bytes = model.n_parameters * _FEWEST_BITS / _BITS_PER_BYTE
    if model.dimensions.model_type in ARCHITECTURES or least_bytes <= target.available_bytes:
        return
    raise DoesNotFitError(
        f"{model.id} does not fit {target.name}: its {model.n_parameters / 1e9:.0f} billion "
        f"weights take {size_text(least_bytes)} even at {_FEWEST_BITS:g} bits",
        allowed=f"{target.name} has {size_text(target.available_bytes)} for a model",
        hint=_would_fit(_fitting_models(target, DEFAULT_CONTEXT_TOKENS)),
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


def size_text(n_bytes: float) -> str:
    """Bytes as people read them: GiB, or MiB below a tenth of one."""
    return f"{n_bytes / GIB:.2f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / _MIB:.1f} MiB"


def _checked_scheme(scheme: str, target: Target) -> str:
    """The scheme's name; a grid that llama.cpp cannot execute there is refused with the reason."""
    if scheme.lower().startswith(("int", "fp8")):
        target.check_grid(RUNTIME, scheme.lower())
    file_type = ggml_file_type(scheme)
    target.check_grid(RUNTIME, file_type.default.name)
    return file_type.name


def _why(
    chosen: Candidate, wanted: Sequence[str], target: Target, context: int, *, asked: bool
) -> str:
    takes = (
        f"it takes {size_text(chosen.memory.total_bytes)} of the "
        f"{size_text(target.available_bytes)} that {target.name} has for a model, at {context} "
        "tokens of context."
    )
    if asked:
        return f"{chosen.scheme} was asked for and fits: {takes}"
    if chosen.scheme == wanted[0]:
        return f"{chosen.scheme} is what {target.name} prefers, and it fits: {takes}"
    too_big = ", ".join(wanted[: wanted.index(chosen.scheme)])
    return (
        f"{chosen.scheme} is the first of {target.name}'s preferred schemes that fits ({too_big} "
        f"would not): {takes}"
    )


def _larger(chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    larger = [
        candidate.scheme
        for candidate in candidates
        if candidate.fits and candidate.file_bytes > chosen.file_bytes
    ]
    return f" Larger ones that fit too: {', '.join(larger)}." if larger else ""


def _does_not_fit(
    model: str,
    dimensions: ModelDimensions,
    target: Target,
    context: int,
    asked: Sequence[Candidate],
    candidates: Sequence[Candidate],
) -> DoesNotFitError:
    """What was asked for, and what would fit: smaller, shorter, a bigger target, another model."""
    needs = ", ".join(f"{item.scheme} {size_text(item.memory.total_bytes)}" for item in asked)
    ways = []
    smaller = [item.scheme for item in candidates if item.fits]
    if smaller:
        ways.append(f"--scheme {smaller[0]}")
    longest = max(asked, key=lambda item: item.max_context_tokens)
    if _SHORTEST_USEFUL_TOKENS <= longest.max_context_tokens < context:
        ways.append(f"--scheme {longest.scheme} --context {longest.max_context_tokens}")
    bigger = [
        name
        for name in list_targets()
        if _any_fits(dimensions, load_target(name), context, [item.scheme for item in asked])
    ]
    if bigger:
        ways.append(f"--target {' or '.join(bigger)}")
    ways += _fitting_models(target, context)
    return DoesNotFitError(
        f"{model} does not fit {target.name} at {context} tokens of context: it needs {needs}",
        allowed=f"{target.name} has {size_text(target.available_bytes)} for a model",
        hint=_would_fit(ways),
    )


def _would_fit(ways: Sequence[str]) -> str:
    if not ways:
        return "nothing that tightfit knows would fit: ask for less --context"
    return "what would fit: " + "; ".join(ways)


def _fitting_models(target: Target, context: int) -> list[str]:
    """The family's models that fit the target with a preferred scheme, as one way out, if any."""
    names = [
        model.name
        for model in MODELS.values()
        if model.dimensions.model_type in ARCHITECTURES
        and context <= model.dimensions.max_position_embeddings
        and _any_fits(model.dimensions, target, context, target.preferred_schemes)
    ]
    return [f"another model: {', '.join(names)}"] if names else []


def _any_fits(
    dimensions: ModelDimensions, target: Target, context: int, schemes: Sequence[str]
) -> bool:
    architecture = architecture_of(dimensions.model_type)
    # One at a time, the least first by custom: the first that fits ends the search.
    return any(
        candidate.fits
        for scheme in reversed(schemes)
        for candidate in list_candidates(architecture, dimensions, target, context, (scheme,))
    )
