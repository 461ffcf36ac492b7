"""Round to nearest: fit the grid's parameters, round every weight to its nearest level.

With an importance matrix (mean x**2 per column) the fit minimizes the expected output error of
uncorrelated inputs, sum_j E[x_j**2] (w_j - q_j)**2; llama.cpp's `--imatrix` does the same.

Shape legend: O output rows, I input columns.
"""

from torch import Tensor

from tightfit.quant.grid import Grid
from tightfit.quant.tensor import QuantizedTensor


def rtn(w_OI: Tensor, grid: Grid, importance_I: Tensor | None = None) -> QuantizedTensor:
    """Round float32 (O, I) weights onto the grid.

    Raises `QuantizationError` for a shape that the grid cannot hold and for NaN or infinity.
    """
    n_rows, n_columns = w_OI.shape
    grid.check_shape((n_rows, n_columns))
    params = grid.fit(w_OI, None if importance_I is None else importance_I[None, :])
    lattice = grid.lattice(params, n_rows, n_columns)
    return QuantizedTensor(
        grid=grid.name,
        shape=(n_rows, n_columns),
        codes_OI=grid.round(w_OI, lattice),
        params=params,
    )
