"""`--scheme auto`: the mix of grids that loses least in the bytes there are.

Every matrix gets one of the grids that the format holds and the target executes; norms, biases and
routers stay floats. The bytes are what the target has left beside KV cache, compute buffers and
runtime at the planned context, or what the user allows, if that is less. Where a layer split makes
one device full before the others, each device is filled by itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from tightfit.calib.shapes import Shape, count_parameters
from tightfit.errors import UsageError
from tightfit.targets.allocation.budget import Budget
from tightfit.targets.allocation.grids import PLAIN, candidate_grids
from tightfit.targets.allocation.option import Option
from tightfit.targets.allocation.sensitivity import Sensitivity
from tightfit.targets.allocation.solve import allocate
from tightfit.targets.candidates import (
    Candidate,
    evaluate,
    fits,
    memory_beside_weights,
    placed_weights,
)
from tightfit.targets.formats import executed_as
from tightfit.targets.grids import FLOAT_BYTES
from tightfit.targets.memory_use import GIB, size_text
from tightfit.targets.schemes.scheme import parse_scheme
from tightfit.targets.setting import Setting
from tightfit.targets.sizes import ModelSizes, model_sizes
from tightfit.targets.workload import Split

AUTO = "auto"
_TOLERANCE = 1 / 512
"""Share of the limit that the bisection may leave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """What the allocator made."""

    storage: Mapping[str, str]
    """Of every tensor by checkpoint name."""
    budget_bytes: int
    """What the user allows, or else the room of all devices together."""
    used_bytes: int
    """Of the budget: bytes on the devices, or of the file where the user limits it. Less than it
    where the target is full before that."""
    binds: bool
    """Whether more bytes would lower the loss; else every tensor has its best grid, and nothing is
    left to choose."""
    candidate: Candidate


def make_mix(
    sizes: ModelSizes, budget: Budget, overrides: Mapping[str, str], sensitivity: Sensitivity
) -> Mix:
    """The mix with the least predicted loss.

    `overrides` fix the grid of tensors by name. A limit of the user's is one more: the mix fits the
    target as well. Raises `UsageError` when even the smallest grids exceed that limit; where they
    exceed the target, the mix is the smallest one and its candidate does not fit.
    """
    template = _template(sizes.setting)
    options = {
        name: _options(sizes, budget, ways, sensitivity, name)
        for name, ways in _all_ways(sizes, overrides, template).items()
    }
    plain = {name: stored_as for name, stored_as in template.items() if name not in options}
    beside = _spent(sizes, budget, plain)
    least = sum(min(way.n_bytes for way in ways) for ways in options.values())
    limit = _limit(sizes, budget)
    if least + beside > limit:
        if not budget.is_room:
            raise _too_small(sizes, budget, least + beside)
        smallest = smallest_storage(sizes, overrides)
        return _mix(sizes, smallest, limit, least + beside, sensitivity, binds=False)

    def made(limit_bytes: int) -> Mix:
        allocation = allocate(options, limit_bytes - beside)
        return _mix(
            sizes,
            plain | dict(allocation.storage),
            limit,
            allocation.n_bytes + beside,
            sensitivity,
            binds=_binds(options, allocation.storage),
        )

    mix = made(limit)
    if mix.candidate.fits:
        return mix
    smallest = smallest_storage(sizes, overrides)
    if not fits(sizes, smallest):
        return _mix(sizes, smallest, limit, least + beside, sensitivity, binds=False)
    if not budget.is_room:
        room = make_mix(sizes, Budget(), overrides, sensitivity)
        used = _spent(sizes, budget, room.storage)
        if used <= limit:
            return replace(room, budget_bytes=limit, used_bytes=used)
    if budget.is_room and sizes.setting.workload.split is Split.LAYER:
        storage = plain | _fill_each_device(sizes, options, plain)
        used = sum(sizes.resident(storage).values())
        binds = _binds(options, storage)
        return _mix(sizes, storage, limit, used, sensitivity, binds=binds)
    return _largest_fitting(made, least + beside, mix.used_bytes)


def _fill_each_device(
    sizes: ModelSizes, options: Mapping[str, Sequence[Option]], plain: Mapping[str, str]
) -> dict[str, str]:
    """The storage that loses least in the room of every device of a layer split.

    Which device a tensor lies on does not depend on its grid, so each device is a program of its
    own. The smallest grids must fit.
    """
    setting = sizes.setting
    beside = memory_beside_weights(setting).devices
    taken = placed_weights(sizes, plain)
    owned: list[dict[str, Sequence[Option]]] = [{} for _ in beside]
    for name, ways in options.items():
        owned[sizes.device_of(name)][name] = ways
    storage: dict[str, str] = {}
    for own, other, plain_bytes in zip(owned, beside, taken, strict=True):
        room = setting.target.device_available_bytes - other.total_bytes - plain_bytes
        storage |= allocate(own, room).storage
    return storage


def _largest_fitting(made: Callable[[int], Mix], least_bytes: int, limit_bytes: int) -> Mix:
    """The mix of most bytes whose fullest device has room for its share, by bisection.

    `least_bytes` fit, `limit_bytes` do not.
    """
    best = made(least_bytes)
    low, high = least_bytes, limit_bytes
    while high - low > limit_bytes * _TOLERANCE:
        middle = (low + high) // 2
        mix = made(middle)
        if mix.candidate.fits:
            best, low = mix, middle
        else:
            high = middle
    return best


def smallest_storage(sizes: ModelSizes, overrides: Mapping[str, str]) -> dict[str, str]:
    """The mix that takes the fewest bytes."""
    template = _template(sizes.setting)
    by_shape: dict[tuple[Shape, tuple[str, ...]], str] = {}
    smallest: dict[str, str] = {}
    for name, ways in _all_ways(sizes, overrides, template).items():
        # Equal layers: one look at each shape.
        key = (sizes.shapes[name], ways)
        if key not in by_shape:
            n_bytes = {way: sizes.tensor(name, way).data_bytes for way in ways}
            by_shape[key] = min(ways, key=n_bytes.__getitem__)
        smallest[name] = by_shape[key]
    return template | smallest


def grid_choices(setting: Setting, overrides: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Grids that a mix chooses from, for every matrix; float types are not among them."""
    sizes = model_sizes(setting)
    return {
        name: tuple(way for way in ways if way not in FLOAT_BYTES)
        for name, ways in _all_ways(sizes, overrides, _template(setting)).items()
    }


def _matrices(setting: Setting, template: Mapping[str, str]) -> list[str]:
    """Checkpoint names of the matrices that a mix puts on grids."""
    if setting.format.name == "gguf":
        return [name for name, stored_as in template.items() if stored_as == PLAIN]
    embedding = setting.architecture.embedding
    return [
        name
        for name, stored_as in template.items()
        if stored_as not in FLOAT_BYTES or name == embedding
    ]


def _template(setting: Setting) -> dict[str, str]:
    """A storage that shows which tensors take a grid at all, and what the others are."""
    # Both hold every width: which grids do is asked later.
    name = "f16" if setting.format.name == "gguf" else "int8-channel"
    scheme = parse_scheme(name, format=setting.format.name)
    return scheme.storage(setting.architecture, setting.dimensions)


def _all_ways(
    sizes: ModelSizes, overrides: Mapping[str, str], template: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Ways to store each matrix that a mix puts on grids."""
    kind, target = sizes.setting.format, sizes.setting.target
    embedding = sizes.setting.architecture.embedding

    @cache
    def grids(shape: Shape, *, is_embedding: bool) -> tuple[str, ...]:
        return candidate_grids(
            kind.name,
            shape,
            lambda grid: target.executes(kind.runtime, executed_as(kind.name, grid)),
            is_embedding=is_embedding,
        )

    return {
        name: (overrides[name],)
        if name in overrides
        else grids(sizes.shapes[name], is_embedding=name == embedding)
        for name in _matrices(sizes.setting, template)
    }


def _options(
    sizes: ModelSizes, budget: Budget, ways: Sequence[str], sensitivity: Sensitivity, name: str
) -> list[Option]:
    return [
        Option(
            stored_as=way,
            n_bytes=_cost(sizes, budget, name, way),
            loss_nats=0.0 if way in FLOAT_BYTES else sensitivity.losses[name][way],
        )
        for way in ways
    ]


def _cost(sizes: ModelSizes, budget: Budget, name: str, stored_as: str) -> int:
    """Bytes of the budget that a tensor takes."""
    size = sizes.tensor(name, stored_as)
    if budget.is_room:
        return size.resident_bytes
    return size.data_bytes if budget.file_gib is None else size.file_bytes


def _spent(sizes: ModelSizes, budget: Budget, storage: Mapping[str, str]) -> int:
    """Bytes of the budget that tensors stored so take, those of the file alone included."""
    if budget.is_room:
        return sum(sizes.resident(storage).values())
    return sizes.data_bytes(storage) if budget.file_gib is None else sizes.padded_bytes(storage)


def _limit(sizes: ModelSizes, budget: Budget) -> int:
    if not budget.is_room:
        return budget.limit_bytes(count_parameters(sizes.shapes))
    return sizes.setting.available_bytes - memory_beside_weights(sizes.setting).total_bytes


def _binds(options: Mapping[str, Sequence[Option]], storage: Mapping[str, str]) -> bool:
    """Whether a tensor has another grid than the one that loses least on it."""
    return any(
        storage[name] != min(ways, key=lambda way: way.loss_nats).stored_as
        for name, ways in options.items()
    )


def _mix(
    sizes: ModelSizes,
    storage: Mapping[str, str],
    limit_bytes: int,
    used_bytes: int,
    sensitivity: Sensitivity,
    *,
    binds: bool,
) -> Mix:
    in_order = {name: storage[name] for name in sizes.shapes}
    return Mix(
        storage=in_order,
        budget_bytes=limit_bytes,
        used_bytes=used_bytes,
        binds=binds,
        candidate=evaluate(sizes, AUTO, in_order, sensitivity),
    )


def _too_small(sizes: ModelSizes, budget: Budget, least_bytes: int) -> UsageError:
    n_parameters = count_parameters(sizes.shapes)
    least_bpw = math.ceil(least_bytes * 8 / n_parameters * 100) / 100
    least_gib = math.ceil(least_bytes / GIB * 1000) / 1000
    return UsageError(
        f"{budget.text} is less than the smallest mix of {sizes.setting.format.label} takes: "
        f"{size_text(least_bytes)}",
        allowed=f"--budget-gib {least_gib:g} or more, --bpw {least_bpw:g} or more",
        hint="give it more bytes, or take a smaller model: see `tightfit models`",
    )
