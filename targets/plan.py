"""The plan: how a model will be stored for a target, decided before any weight is read.

Everything comes from the model's dimensions: shapes and the scheme give what each tensor is stored
as, that gives the bytes, and the memory models add what the runtime needs. Nothing is downloaded
and no torch is imported. After calibration a plan for `--scheme auto` is made again with measured
losses (`refine_plan`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.shapes import count_parameters
from tightfit.errors import UsageError
from tightfit.targets.allocation.budget import Budget, check_budget
from tightfit.targets.allocation.prior import prior_sensitivity
from tightfit.targets.allocation.sensitivity import Sensitivity
from tightfit.targets.alternatives import Wanted, does_not_fit
from tightfit.targets.candidates import (
    LISTED,
    Candidate,
    check_executed,
    check_scheme,
    evaluate,
    list_candidates,
    parse_schemes,
)
from tightfit.targets.formats import DEFAULT_FORMAT, Format, find_format
from tightfit.targets.memory_use import size_text
from tightfit.targets.mix import AUTO, Mix, make_mix
from tightfit.targets.profile import Target
from tightfit.targets.refusals import check_family, check_format, check_loaded, check_split
from tightfit.targets.schemes.ggml_file_types import FILE_TYPES, FileType
from tightfit.targets.schemes.mixtures import MixtureScheme
from tightfit.targets.schemes.scheme import Scheme, parse_scheme
from tightfit.targets.setting import Setting, usual_precision
from tightfit.targets.sizes import ModelSizes, model_sizes
from tightfit.targets.workload import CacheType, Split, Workload

DEFAULT_CONTEXT_TOKENS = 8192
"""Reasoning traces are long: DeepSeek's protocol allows 32,768 tokens. A quarter of that lets the
8B distills keep 4 bits on 8 GB; `--context` asks for more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What will be made, and why."""

    model: str
    setting: Setting
    candidates: tuple[Candidate, ...]
    """All schemes that the target executes, largest first, with losses predicted from shapes."""
    chosen: Candidate
    method: str | None
    """The algorithm that the scheme's name demands; None: whatever `--method` says."""
    static_inputs: bool
    """FP8 with a calibrated, fixed scale for what each linear reads."""
    storage: Mapping[str, str]
    """Grid name, `F32`, `F16` or `BF16` of every tensor by checkpoint name."""
    mix: Mix | None
    """Of `--scheme auto`."""
    budget: Budget
    overrides: Mapping[str, str]
    """Grids that were asked for by tensor: the head's, the embedding's."""
    nearest: str | None
    """The file type of llama.cpp that names a GGUF: the scheme itself, or of any other mix of grids
    the nearest in bits; None for one grid on all matrices."""
    reason: str

    @property
    def target(self) -> Target:
        """What it is for."""
        return self.setting.target

    @property
    def format(self) -> str:
        """Name of the format."""
        return self.setting.format.name

    @property
    def runtime(self) -> str:
        """What the figures are for."""
        return self.setting.format.runtime

    @property
    def context_tokens(self) -> int:
        """What it keeps room for."""
        return self.setting.workload.context_tokens

    @property
    def file_label(self) -> str | None:
        """What a GGUF's name says of its grids: `Q4_K_M`, `auto-Q4_K_M`, `experts-Q4_K_S`.

        The Hub takes the last known type of a name for the file's. None as for `nearest`.
        """
        if self.nearest is None:
            return None
        label = FILE_TYPES[self.nearest].label
        kind = self.chosen.scheme.partition("-")[0]
        return label if self.chosen.scheme == self.nearest else f"{kind}-{label}"

    @property
    def precision(self) -> str | None:
        """What a graph computes in: `float16` or `float32`; None for a GGUF."""
        return self.setting.precision


def make_plan(
    dimensions: ModelDimensions,
    target: Target,
    *,
    model: str,
    scheme: str = AUTO,
    context_tokens: int | None = None,
    n_sequences: int = 1,
    cache_type: CacheType = CacheType.F16,
    split: Split = Split.LAYER,
    budget: Budget | None = None,
    format: str = DEFAULT_FORMAT,  # noqa: A002 - the name of the option
    head: str | None = None,
    embedding: str | None = None,
    precision: str | None = None,
) -> Plan:
    """Choose how to store a model for the target.

    `auto` is the mix of grids that is predicted to lose least in the target's room, or in the
    `budget`; a named scheme is taken as it is. `context_tokens` defaults to
    `DEFAULT_CONTEXT_TOKENS`, or to the model's own limit if that is shorter; `head` and `embedding`
    override the scheme; `precision` of an ONNX graph is float16 for a GPU and float32 for a CPU.
    Raises `DoesNotFitError` when what is asked for does not fit, `UsageError` for a scheme, a
    format, a budget or a context that does not exist or that the target cannot execute,
    `QuantizationError` for a scheme that the model's widths do not allow.
    """
    kind, budget = find_format(format), budget or Budget()
    check_format(kind, target)
    check_family(kind, dimensions)
    check_budget(budget)
    if scheme != AUTO and not budget.is_room:
        raise UsageError(
            f"{budget.text} is for --scheme auto, and --scheme {scheme} was asked for",
            allowed="a named scheme is honoured exactly, whatever it takes",
            hint="leave one of the two out",
        )
    setting = Setting(
        dimensions=dimensions,
        target=target,
        format=kind,
        precision=precision or usual_precision(kind, target),
        workload=Workload(
            context_tokens=checked_context(dimensions, context_tokens),
            n_sequences=n_sequences,
            cache_type=cache_type,
            split=split,
        ),
    )
    for name in filter(None, (scheme, head, embedding)):
        target.check_fp4(kind.runtime, name)
    check_split(setting)
    sizes = model_sizes(setting)
    prior = prior_sensitivity(setting.architecture, dimensions)
    wanted = _wanted(scheme, kind, head, embedding)
    listed = parse_schemes(LISTED[format], kind, head, embedding)
    if scheme == AUTO and kind.is_checkpoint:
        return _listed_plan(model, sizes, listed, prior, budget)
    if scheme == AUTO:
        overrides = wanted.overrides(setting.architecture, dimensions)
        check_executed(setting, AUTO, overrides)
        mix = make_mix(sizes, budget, overrides, prior)
        candidates = _largest_first(mix.candidate, list_candidates(sizes, listed, prior))
        if not mix.candidate.fits:
            asked = Wanted(scheme=None, overrides=overrides)
            raise does_not_fit(model, setting, asked, mix.candidate, candidates)
        return Plan(
            model=model,
            setting=setting,
            candidates=candidates,
            chosen=mix.candidate,
            method=None,
            static_inputs=False,
            storage=mix.storage,
            mix=mix,
            budget=budget,
            overrides=overrides,
            nearest=_nearest(mix.candidate, candidates) if format == "gguf" else None,
            reason=_why_mix(mix, setting, budget, candidates),
        )
    return _named_plan(model, sizes, wanted, listed, prior)


def _listed_plan(
    model: str,
    sizes: ModelSizes,
    listed: Sequence[Scheme],
    prior: Sensitivity,
    budget: Budget,
) -> Plan:
    """`auto` of a checkpoint, which has one grid: the listed scheme that loses least in the room.

    Raises `UsageError` where none keeps a limit of the user's.
    """
    setting = sizes.setting
    by_name = {scheme.name: scheme for scheme in listed}
    possible = list_candidates(sizes, listed, prior)
    if not possible:
        setting.target.check_grid(setting.format.runtime, _grid_of(listed[0]))
    within = [item for item in possible if _keeps(item, sizes, budget)]
    if not within:
        raise UsageError(
            f"{budget.text} is too little for {model} as {setting.format.label}",
            allowed=f"{size_text(possible[-1].file_bytes)} or "
            f"{possible[-1].bits_per_weight:.2f} bits per weight ({possible[-1].scheme})",
            hint="give more, or choose --format gguf",
        )
    order = [(not item.fits, item.predicted_nats, item.file_bytes) for item in within]
    chosen = within[order.index(min(order))]
    if not chosen.fits:
        chosen = within[-1]
    made = _named_plan(model, sizes, by_name[chosen.scheme], listed, prior)
    why = f"auto takes the grid that loses least of those that fit: {_takes(chosen, setting)}"
    return replace(made, reason=why)


def _keeps(item: Candidate, sizes: ModelSizes, budget: Budget) -> bool:
    """Whether a candidate keeps the user's limit, where there is one."""
    return budget.is_room or item.file_bytes <= budget.limit_bytes(count_parameters(sizes.shapes))


def _grid_of(scheme: Scheme) -> str:
    assert isinstance(scheme.base, str)
    return scheme.base


def refine_plan(plan: Plan, sensitivity: Sensitivity) -> Plan:
    """A plan of `--scheme auto` with losses that were measured; other plans stay as they are."""
    if plan.mix is None:
        return plan
    mix = make_mix(model_sizes(plan.setting), plan.budget, plan.overrides, sensitivity)
    assert mix.candidate.fits or not plan.chosen.fits, "the room is the same as before"
    return replace(
        plan,
        chosen=mix.candidate,
        storage=mix.storage,
        mix=mix,
        reason=_why_mix(mix, plan.setting, plan.budget, plan.candidates, measured=True),
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


def _wanted(scheme: str, kind: Format, head: str | None, embedding: str | None) -> Scheme:
    """The named scheme; for `auto` one that only carries the overrides."""
    name = "f16" if scheme == AUTO else scheme
    return parse_scheme(name, format=kind.name, head=head, embedding=embedding)


def _named_plan(
    model: str, sizes: ModelSizes, wanted: Scheme, listed: Sequence[Scheme], prior: Sensitivity
) -> Plan:
    setting = sizes.setting
    storage = check_scheme(setting, wanted)
    check_loaded(setting, set(storage.values()), static_inputs=wanted.static_inputs)
    chosen = evaluate(sizes, wanted.name, storage, prior)
    # A method in the name changes no byte: such a scheme stands for the plain one.
    others = [other for other in listed if _stores(other) != _stores(wanted)]
    candidates = _largest_first(chosen, list_candidates(sizes, others, prior))
    if not chosen.fits:
        asked = Wanted(scheme=wanted, overrides={})
        raise does_not_fit(model, setting, asked, chosen, candidates)
    takes = _takes(chosen, setting)
    return Plan(
        model=model,
        setting=setting,
        candidates=candidates,
        chosen=chosen,
        method=wanted.method,
        static_inputs=wanted.static_inputs,
        storage=storage,
        mix=None,
        budget=Budget(),
        overrides=wanted.overrides(setting.architecture, setting.dimensions),
        nearest=_nearest_named(wanted, chosen, candidates),
        reason=f"{chosen.scheme} was asked for and fits: {takes}{_larger(chosen, candidates)}",
    )


def _nearest_named(
    wanted: Scheme, chosen: Candidate, candidates: Sequence[Candidate]
) -> str | None:
    """The file type that names the GGUF of a named scheme; None for one grid on all matrices."""
    if isinstance(wanted.base, FileType):
        return wanted.base.name
    return _nearest(chosen, candidates) if isinstance(wanted.base, MixtureScheme) else None


def _nearest(mix: Candidate, candidates: Sequence[Candidate]) -> str:
    """The file type of K-quants (or Q8_0) whose bits per weight come nearest.

    Another one where the target or no width allows those; Q8_0 where there is none to compare.
    """
    named = [item for item in candidates if item.scheme in FILE_TYPES]
    known = [item for item in named if "_k" in item.scheme or item.scheme == "q8_0"]
    alike = [item for item in named if (item.bits_per_weight < 9) == (mix.bits_per_weight < 9)]
    if not (known or alike):
        return "q8_0"
    near = min(known or alike, key=lambda item: abs(item.bits_per_weight - mix.bits_per_weight))
    return near.scheme


def _stores(scheme: Scheme) -> tuple[object, bool]:
    return scheme.base, scheme.static_inputs


def _largest_first(chosen: Candidate, others: Sequence[Candidate]) -> tuple[Candidate, ...]:
    return tuple(sorted((chosen, *others), key=lambda candidate: -candidate.file_bytes))


def _takes(chosen: Candidate, setting: Setting) -> str:
    about = "" if setting.format.name == "gguf" else "about "
    note = setting.target.notes.get(setting.format.name)
    return (
        f"it takes {about}{size_text(chosen.memory.total_bytes)} of the "
        f"{size_text(setting.available_bytes)} that {setting.target.name} has for a model, at "
        f"{setting.workload.context_tokens} tokens of context." + (f" {note}" if note else "")
    )


def _why_mix(
    mix: Mix,
    setting: Setting,
    budget: Budget,
    candidates: Sequence[Candidate],
    *,
    measured: bool = False,
) -> str:
    """What the mix spends, and what it is better than."""
    limit = "the room" if budget.is_room else budget.text
    bits = f"{mix.candidate.bits_per_weight:.2f} bits per weight"
    takes = f"With that {_takes(mix.candidate, setting)}"
    if not mix.binds:
        return (
            f"auto gives every tensor the largest grid that it uses, {bits}: {limit} "
            f"({size_text(mix.budget_bytes)}) would hold more, which no measurement would show. "
            f"{takes}"
        )
    named = [item for item in candidates if item.scheme != AUTO and item.fits]
    smaller = [item for item in named if item.file_bytes <= mix.candidate.file_bytes]
    beats = f"; the largest named scheme in it is {smaller[0].scheme}" if smaller else ""
    basis = (
        "losses measured on the calibration data"
        if measured
        else "losses predicted from shapes, which calibration will replace"
    )
    return (
        f"auto puts each tensor on the grid that loses least in the bytes there are ({basis}): "
        f"{bits}, {size_text(mix.used_bytes)} of {limit} ({size_text(mix.budget_bytes)}){beats}. "
        f"{takes}"
    )


def _larger(chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    larger = [
        candidate.scheme
        for candidate in candidates
        if candidate.fits and candidate.file_bytes > chosen.file_bytes
    ]
    return f" Larger ones that fit too: {', '.join(larger)}." if larger else ""
