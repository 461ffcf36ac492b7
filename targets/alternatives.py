"""What to do when a model does not fit: smaller, shorter, a bigger target, another model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tightfit.calib.models import MODELS
from tightfit.errors import DoesNotFitError, QuantizationError, UsageError
from tightfit.targets.candidates import LISTED, Candidate, check_scheme, fits, parse_schemes
from tightfit.targets.memory_use import size_text
from tightfit.targets.mix import AUTO, smallest_storage
from tightfit.targets.profile import list_targets, load_target
from tightfit.targets.refusals import check_family
from tightfit.targets.schemes.scheme import Scheme, parse_scheme
from tightfit.targets.setting import Setting
from tightfit.targets.sizes import model_sizes
from tightfit.targets.workload import CacheType

_SHORTEST_USEFUL_TOKENS = 2048
"""No reasoning trace fits a shorter context, so none is offered as a way out."""
_N_TARGETS = 4
"""Bigger targets to name, the smallest first."""
_SMALL_EMBEDDING: Mapping[str, str] = {
    "gguf": "q8_0",
    "onnx": "int8-g32",
    "tensorrt": "int8-channel",
}
"""By format: 8 bits for the embedding, a way out where it is float16; checkpoints have none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What was asked for."""

    scheme: Scheme | None
    """None: `auto`, whose smallest mix must fit."""
    overrides: Mapping[str, str]

    @property
    def name(self) -> str:
        """As it was asked for."""
        return self.scheme.name if self.scheme else AUTO


def does_not_fit(
    model: str,
    setting: Setting,
    wanted: Wanted,
    needed: Candidate,
    candidates: Sequence[Candidate],
) -> DoesNotFitError:
    """What was asked for, and what would fit: smaller, shorter, a bigger target, another model."""
    target, context = setting.target, setting.workload.context_tokens
    least = "" if wanted.scheme else "at least "
    ways = _ways_out(setting, wanted, needed, candidates)
    uneven = ""
    if setting.n_devices > 1 and needed.memory.total_bytes <= setting.available_bytes:
        uneven = (
            f"; the fullest of its {setting.n_devices} devices would hold "
            f"{size_text(needed.memory.fullest_bytes)}, and one has "
            f"{size_text(target.device_available_bytes)}"
        )
    return DoesNotFitError(
        f"{model} does not fit {target.name} at {context} tokens of context: {wanted.name} needs "
        f"{least}{size_text(needed.memory.total_bytes)}",
        allowed=f"{target.name} has {size_text(setting.available_bytes)} for a model{uneven}",
        hint=f"what would fit: {'; '.join(ways)}"
        if ways
        else "nothing that tightfit knows would fit: ask for less --context",
    )


def _ways_out(
    setting: Setting, wanted: Wanted, needed: Candidate, candidates: Sequence[Candidate]
) -> list[str]:
    """Options that make something fit."""
    ways = []
    if wanted.scheme:
        if _fit(setting, Wanted(scheme=None, overrides=wanted.overrides)):
            ways.append(f"--scheme {AUTO}")
        ways += [f"--scheme {item.scheme}" for item in candidates if item.fits][:1]
    small = _SMALL_EMBEDDING.get(setting.format.name)
    lighter = _with_embedding(wanted, small, setting) if small else None
    if lighter and _fit(setting, lighter):
        ways.append(f"--scheme {wanted.name} --embedding {small}")
    workload = setting.workload
    halved = replace(setting, workload=replace(workload, cache_type=CacheType.Q8_0))
    if setting.format.name == "gguf" and workload.cache_type is CacheType.F16:
        ways += ["--kv-cache q8_0"] * _fit(halved, wanted)
    if workload.n_sequences > 1:
        alone = replace(setting, workload=replace(workload, n_sequences=1))
        ways += ["--batch 1"] * _fit(alone, wanted)
    if _SHORTEST_USEFUL_TOKENS <= needed.max_context_tokens < workload.context_tokens:
        ways.append(f"--context {needed.max_context_tokens}")
    targets = sorted(map(load_target, list_targets()), key=lambda each: each.available_bytes)
    bigger = [each.name for each in targets if _fit(setting.on(each), wanted)][:_N_TARGETS]
    if bigger:
        ways.append(f"--target {' or '.join(bigger)}")
    return ways + _fitting_models(setting)


def _fit(setting: Setting, wanted: Wanted) -> bool:
    """Whether what was asked for would fit there."""
    if setting.format.runtime not in setting.target.runtimes:
        return False
    try:
        check_family(setting.format, setting.dimensions)
        sizes = model_sizes(setting)
        if wanted.scheme:
            return fits(sizes, check_scheme(setting, wanted.scheme))
        if setting.format.is_checkpoint:
            return any(_fit(setting, replace(wanted, scheme=each)) for each in _listed(setting))
        return fits(sizes, smallest_storage(sizes, wanted.overrides))
    except (UsageError, QuantizationError):
        return False


def _listed(setting: Setting) -> list[Scheme]:
    return parse_schemes(LISTED[setting.format.name], setting.format)


def _with_embedding(wanted: Wanted, small: str, setting: Setting) -> Wanted | None:
    """The scheme with a smaller embedding, where it has a float16 one by itself."""
    scheme = wanted.scheme
    if scheme is None or scheme.embedding is not None or not isinstance(scheme.base, str):
        return None
    if setting.dimensions.tie_word_embeddings:
        return None
    lighter = parse_scheme(scheme.name, format=scheme.format, head=scheme.head, embedding=small)
    return replace(wanted, scheme=lighter)


def _fitting_models(setting: Setting) -> list[str]:
    """The family's other models whose smallest mix fits the target, as one way out, if any."""
    smallest = Wanted(scheme=None, overrides={})
    context = setting.workload.context_tokens
    names = [
        model.name
        for model in MODELS.values()
        if model.dimensions != setting.dimensions
        and context <= model.dimensions.max_position_embeddings
        and _fit(replace(setting, dimensions=model.dimensions), smallest)
    ]
    return [f"another model: {', '.join(names)}"] if names else []
