"""Every model of the family on every target: the largest file type that fits, and how far it goes.

A cell is one line of a plan: the GGUF file type of most bits whose weights, KV cache, compute
buffers and runtime fit the target, and the longest context that fits with it. Types above 8 bits
are left out, as `--scheme auto` leaves them out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.models import MODELS
from tightfit.errors import UsageError
from tightfit.targets.candidates import check_scheme, fits, longest_context
from tightfit.targets.formats import find_format
from tightfit.targets.plan import DEFAULT_CONTEXT_TOKENS
from tightfit.targets.profile import Target, list_targets, load_target
from tightfit.targets.schemes.scheme import Scheme, parse_scheme
from tightfit.targets.setting import Setting
from tightfit.targets.sizes import model_sizes
from tightfit.targets.workload import Workload

SHOWN = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
"""The file types that people know, largest first; a plan weighs those between as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One model on one target."""

    model: str
    target: str
    scheme: str | None
    """None: not even the smallest fits, or the model has no such context."""
    max_context_tokens: int
    """0 where nothing fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """All cells."""

    context_tokens: int
    targets: tuple[Target, ...]
    """From the least memory to the most."""
    models: tuple[tuple[str, ...], ...]
    """Names of models of one size, which share a column; the smallest first."""
    cells: tuple[Cell, ...]
    """Row by row; of the models that share a column, the first is named."""

    def row(self, target: Target) -> tuple[Cell, ...]:
        """The cells of a target."""
        return tuple(cell for cell in self.cells if cell.target == target.name)


def make_matrix(context_tokens: int | None = None) -> Matrix:
    """The family on all targets at a context (by default that of a plan).

    A model whose own limit is shorter has empty cells. Raises `UsageError` for a context that no
    model has.
    """
    context = DEFAULT_CONTEXT_TOKENS if context_tokens is None else context_tokens
    longest = max(model.dimensions.max_position_embeddings for model in MODELS.values())
    if not 1 <= context <= longest:
        raise UsageError(
            f"a context of {context} tokens is not possible with any model of the family",
            allowed=f"1 to {longest} tokens",
            hint=f"leave --context out for {DEFAULT_CONTEXT_TOKENS}",
        )
    targets = sorted(map(load_target, list_targets()), key=lambda each: each.available_bytes)
    columns: dict[ModelDimensions, list[str]] = {}
    for model in sorted(MODELS.values(), key=lambda each: each.n_parameters):
        columns.setdefault(model.dimensions, []).append(model.name)
    schemes = [parse_scheme(name, format="gguf") for name in SHOWN]
    cells = [
        _cell(names[0], dimensions, target, context, schemes)
        for target in targets
        for dimensions, names in columns.items()
    ]
    return Matrix(
        context_tokens=context,
        targets=tuple(targets),
        models=tuple(map(tuple, columns.values())),
        cells=tuple(cells),
    )


def _cell(
    model: str, dimensions: ModelDimensions, target: Target, context: int, schemes: Sequence[Scheme]
) -> Cell:
    kind = find_format("gguf")
    if context <= dimensions.max_position_embeddings:
        setting = Setting(
            dimensions=dimensions,
            target=target,
            format=kind,
            precision=None,
            workload=Workload(context_tokens=context),
        )
        sizes = model_sizes(setting)
        for scheme in schemes:
            storage = check_scheme(setting, scheme)
            if fits(sizes, storage):
                longest = longest_context(sizes, storage)
                return Cell(
                    model=model,
                    target=target.name,
                    scheme=scheme.name,
                    max_context_tokens=longest,
                )
    return Cell(model=model, target=target.name, scheme=None, max_context_tokens=0)
