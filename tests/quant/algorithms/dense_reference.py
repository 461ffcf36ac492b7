"""Slow, obvious, float64 versions of the algorithms."""

import torch
from torch import Tensor

from tightfit.quant.grid import Grid, join_params
from tightfit.quant.tensor import Params


def damped(hessian: Tensor, fraction: float) -> Tensor:
    h = hessian.double()
    return h + fraction * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)


def visit_groups(order: str, diagonal: Tensor, span: int) -> list[list[int]]:
    """Columns in the order of the visit, in groups whose parameters are fitted together."""
    n = len(diagonal)

    def by_diagonal(columns: list[int]) -> list[int]:
        return sorted(columns, key=lambda column: -diagonal[column].item())

    width = n if span == 0 or order == "static" else span
    if order == "act-order":
        ranked = by_diagonal(list(range(n)))
        return [ranked[start : start + width] for start in range(0, n, width)]
    groups = [list(range(start, min(start + width, n))) for start in range(0, n, width)]
    if order == "natural":
        return groups
    groups.sort(key=lambda group: -sum(diagonal[column].item() for column in group))
    return [by_diagonal(group) for group in groups]


def obq_gptq(
    w: Tensor, hessian: Tensor, grid: Grid, order: str, fraction: float
) -> tuple[Tensor, Params, Tensor]:
    """GPTQ as optimal brain quantization in a fixed order: the inverse Hessian of the columns that
    are left is computed anew for every column. Returns codes, parameters and values, columns in
    storage order (parameters in the order of the groups for act-order).
    """
    h = damped(hessian, fraction)
    current = w.double().clone()
    groups = visit_groups(order, hessian.diagonal(), grid.span)
    left = [column for group in groups for column in group]
    codes = torch.zeros(w.shape, dtype=torch.uint8)
    values = torch.zeros(w.shape, dtype=torch.float64)
    params_of: dict[int, Params] = {}
    for which, group in enumerate(groups):
        stored = group if order == "act-order" else sorted(group)
        params = grid.fit(current[:, stored].float(), hessian.diagonal()[stored][None])
        params_of[which if order == "act-order" else stored[0]] = params
        lattice = grid.lattice(params, w.shape[0], len(stored))
        for column in group:
            inverse = torch.linalg.inv(h[left][:, left])
            one = lattice.columns(torch.tensor([stored.index(column)]))
            code = grid.round(current[:, [column]].float(), one)
            codes[:, [column]] = code
            values[:, [column]] = grid.decode(code, one).double()
            error = (current[:, column] - values[:, column]) / inverse[0, 0]
            current[:, left] -= error[:, None] * inverse[0][None, :]
            left = left[1:]
    return codes, join_params([params_of[key] for key in sorted(params_of)]), values


def awq_errors(
    w: Tensor, x: Tensor, grid: Grid, importance: Tensor, n_steps: int
) -> tuple[list[float], list[Tensor]]:
    """Mean squared output error of every alpha, by running the activations through both layers."""
    mean = x.abs().mean(dim=0)
    errors, scales = [], []
    for step in range(n_steps + 1):
        scale = mean ** (step / n_steps)
        scale = scale / (scale.max() * scale.min()).sqrt()
        weight = (importance / scale**2)[None]
        params = grid.fit(w * scale, weight)
        lattice = grid.lattice(params, *w.shape)
        rounded = grid.decode(grid.round(w * scale, lattice), lattice)
        y = x.double() @ w.double().T
        y_rounded = (x.double() / scale.double()) @ rounded.double().T
        errors.append((y - y_rounded).square().sum(dim=1).mean().item())
        scales.append(scale)
    return errors, scales
