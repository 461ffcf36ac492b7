"""What to do when a model does not fit: smaller, shorter, a bigger target, another model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tightfit.calib.architecture import ARCHITECTURES
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.models import MODELS, KnownModel
from tightfit.errors import DoesNotFitError
from tightfit.targets.candidates import (
    Candidate,
    Setting,
    list_candidates,
    parse_schemes,
    usual_precision,
)
from tightfit.targets.formats import DEFAULT_FORMAT, find_format
from tightfit.targets.memory import size_text
from tightfit.targets.profile import Target, list_targets, load_target
from tightfit.targets.schemes.scheme import Scheme, parse_scheme

DEFAULT_CONTEXT_TOKENS = 8192
"""Reasoning traces are long: DeepSeek's protocol allows 32,768 tokens. A quarter of that lets the
8B distills keep 4 bits on 8 GB; `--context` asks for more."""
_BITS_PER_BYTE = 8
_FEWEST_BITS = 2.625
"""Q2_K's bits per weight (84 bytes for 256 weights), the smallest type that tightfit writes."""
_SHORTEST_USEFUL_TOKENS = 2048
"""No reasoning trace fits a shorter context, so none is offered as a way out."""
_SMALL_EMBEDDING: Mapping[str, str] = {
    "gguf": "q8_0",
    "onnx": "int8-g32",
    "tensorrt": "int8-channel",
}
"""By format: 8 bits for the embedding, a way out where it is float16."""


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
        hint=_would_fit(_fitting_models(target, DEFAULT_FORMAT, DEFAULT_CONTEXT_TOKENS)),
    )


def does_not_fit(
    model: str, setting: Setting, asked: Sequence[Scheme], candidates: Sequence[Candidate]
) -> DoesNotFitError:
    """What was asked for, and what would fit: smaller, shorter, a bigger target, another model."""
    target, context = setting.target, setting.context_tokens
    by_name = {candidate.scheme: candidate for candidate in candidates}
    figures = [by_name[scheme.name] for scheme in asked]
    needs = ", ".join(f"{item.scheme} {size_text(item.memory.total_bytes)}" for item in figures)
    return DoesNotFitError(
        f"{model} does not fit {target.name} at {context} tokens of context: it needs {needs}",
        allowed=f"{target.name} has {size_text(target.available_bytes)} for a model",
        hint=_would_fit(_ways_out(setting, asked, figures, candidates)),
    )


def _ways_out(
    setting: Setting,
    asked: Sequence[Scheme],
    figures: Sequence[Candidate],
    candidates: Sequence[Candidate],
) -> list[str]:
    """Options that make something fit."""
    ways = []
    smaller = [item.scheme for item in candidates if item.fits]
    if smaller:
        ways.append(f"--scheme {smaller[0]}")
    small = _SMALL_EMBEDDING[setting.format.name]
    lighter = _first_fitting(setting, _with_embedding(asked, small, setting))
    if lighter:
        ways.append(f"--scheme {lighter} --embedding {small}")
    longest = max(figures, key=lambda item: item.max_context_tokens)
    if _SHORTEST_USEFUL_TOKENS <= longest.max_context_tokens < setting.context_tokens:
        ways.append(f"--scheme {longest.scheme} --context {longest.max_context_tokens}")
    bigger = [name for name in list_targets() if _fits_on(load_target(name), setting, asked)]
    if bigger:
        ways.append(f"--target {' or '.join(bigger)}")
    return ways + _fitting_models(setting.target, setting.format.name, setting.context_tokens)


def _with_embedding(asked: Sequence[Scheme], small: str, setting: Setting) -> list[Scheme]:
    """The schemes with a smaller embedding, those that have a float16 one by themselves."""
    return [
        parse_scheme(scheme.name, format=scheme.format, head=scheme.head, embedding=small)
        for scheme in asked
        if scheme.embedding is None
        and isinstance(scheme.base, str)
        and not setting.dimensions.tie_word_embeddings
    ]


def _fits_on(target: Target, setting: Setting, asked: Sequence[Scheme]) -> bool:
    if setting.format.name not in target.preferred_schemes:
        return False
    # A graph's precision is the one asked for only on this target.
    precision = usual_precision(setting.format, target)
    there = replace(setting, target=target, precision=precision)
    # The least comes last by custom: the first that fits ends the search.
    return _first_fitting(there, asked[::-1]) is not None


def _first_fitting(setting: Setting, schemes: Sequence[Scheme]) -> str | None:
    """Name of the first scheme that fits; None: none does."""
    for scheme in schemes:
        if any(candidate.fits for candidate in list_candidates(setting, (scheme,))):
            return scheme.name
    return None


def _would_fit(ways: Sequence[str]) -> str:
    if not ways:
        return "nothing that tightfit knows would fit: ask for less --context"
    return "what would fit: " + "; ".join(ways)


def _fitting_models(target: Target, format_name: str, context: int) -> list[str]:
    """The family's models that fit the target with a preferred scheme, as one way out, if any."""
    kind = find_format(format_name)
    schemes = parse_schemes(target.preferred_schemes[format_name], kind)

    def fits(dimensions: ModelDimensions) -> bool:
        setting = Setting(
            dimensions=dimensions,
            target=target,
            format=kind,
            precision=usual_precision(kind, target),
            context_tokens=context,
        )
        return _first_fitting(setting, schemes[::-1]) is not None

    names = [
        model.name
        for model in MODELS.values()
        if model.dimensions.model_type in ARCHITECTURES
        and context <= model.dimensions.max_position_embeddings
        and fits(model.dimensions)
    ]
    return [f"another model: {', '.join(names)}"] if names else []
