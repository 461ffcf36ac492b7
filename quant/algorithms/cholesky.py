"""The factor of the inverse Hessian that GPTQ walks along, and the damping it needs.

GPTQ removes columns one after the other; the row of the inverse Hessian that each removal needs is
a row of the upper Cholesky factor U of the inverse, H^-1 = U^T U (Frantar et al. 2022, section
3.3, step 3). We never form the inverse: with the order of rows and columns reversed, the ordinary
Cholesky factor gives H = R R^T with R upper triangular, and U = R^-1.

A Hessian from few tokens is singular, so a fraction of its mean diagonal is added first. When the
factorization still fails in float64, the fraction grows tenfold and the result says so.

Shape legend: I columns.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.errors import QuantizationError
from tightfit.quant.grid import all_finite

_LOG = logging.getLogger(__name__)
_DAMP_GROWTH = 10.0
_LEAST_RETRY = 0.01
"""First retry when no damping was asked for: GPTQ's own default."""
_SMALL_TRIANGLE = 256
"""Columns below which products no longer gain anything."""
_LARGEST_DAMP = 1.0
"""Beyond the mean diagonal itself, damping would erase what calibration learnt."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InverseFactor:
    """U of H^-1 = U^T U for the damped Hessian."""

    upper_II: Tensor
    """float32 (I, I), upper triangular, positive diagonal."""
    damp_fraction: float
    """Fraction of the mean diagonal that was added in the end."""


def factor_inverse(hessian_II: Tensor, damp_fraction: float) -> InverseFactor:
    """Damp and factor a symmetric Hessian with a positive diagonal.

    Raises `QuantizationError` when no damping up to the mean diagonal makes it positive definite.
    """
    mean_diagonal = hessian_II.diagonal().mean().item()
    damp = damp_fraction
    while True:
        for dtype in (torch.float32, torch.float64):
            reversed_II = hessian_II.to(dtype).flip(0, 1)
            reversed_II.diagonal().add_(damp * mean_diagonal)
            upper_II = _inverse_upper(reversed_II)
            if upper_II is not None:
                return InverseFactor(upper_II=upper_II.float(), damp_fraction=damp)
        if damp >= _LARGEST_DAMP:
            break
        larger = max(damp * _DAMP_GROWTH, _LEAST_RETRY)
        _LOG.warning(
            "Cholesky failed with damping %g of the mean diagonal; trying %g", damp, larger
        )
        damp = larger
    raise QuantizationError(
        f"the Hessian is not positive definite even with {damp:g} of its mean diagonal added",
        allowed="the mean of x x^T over calibration tokens",
        hint="the statistics are damaged: delete the job directory and calibrate again",
    )


def _inverse_upper(reversed_II: Tensor) -> Tensor | None:
    """U with H^-1 = U^T U, or None when H, reversed, is not numerically positive definite."""
    lower_II, failed = torch.linalg.cholesky_ex(reversed_II)
    if failed.item() or not all_finite(lower_II):
        return None
    upper_II: Tensor = lower_II.flip(0, 1)
    del lower_II  # R1's largest takes 1.4 GB
    _invert_upper_(upper_II)
    return upper_II


def _invert_upper_(upper_II: Tensor) -> None:
    """Invert an upper triangular matrix in place, half by half: nearly all of it is products.

        [A B]^-1     [A^-1   -A^-1 B C^-1]
        [  C]     =  [            C^-1   ]

    Half the time of solving for the identity, which knows nothing of its zeros.
    """
    n_columns = len(upper_II)
    if n_columns <= _SMALL_TRIANGLE:
        identity_II = torch.eye(n_columns, dtype=upper_II.dtype, device=upper_II.device)
        upper_II.copy_(torch.linalg.solve_triangular(upper_II, identity_II, upper=True))
        return
    first, last = slice(0, n_columns // 2), slice(n_columns // 2, n_columns)
    _invert_upper_(upper_II[first, first])
    _invert_upper_(upper_II[last, last])
    corner = upper_II[first, last]
    torch.mm(upper_II[first, first] @ corner.neg_(), upper_II[last, last], out=corner)
