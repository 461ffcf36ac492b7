"""The grids that the allocator chooses from for one matrix.

A grid is listed where the format holds it, the row width divides into its blocks and the target
executes it. The lists stop at 8 bits on purpose: Q8_0 loses less than a runtime's own rounding of
the activations, and every byte more slows decoding down (`--scheme bf16` is there for those who
want the weights as they are). So F16 is only for a matrix that nothing smaller can hold.

GGUF has no list for widths of its own: blocks of 32 weights divide whatever super-blocks of 256
do. The solver drops what another grid beats in bytes and loss.
"""

from collections.abc import Callable, Mapping, Sequence

from tightfit.targets.grids import FLOAT8, INTEGERS
from tightfit.targets.schemes.ggml_types import GgmlType as Type
from tightfit.targets.schemes.ggml_types import block_weights

PLAIN = "F16"
"""What holds any width in every format."""
_GRIDS: Mapping[str, tuple[str, ...]] = {
    "gguf": (
        *("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K"),
        *("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    ),
    "onnx": (
        "int2-g32-asym",
        *("int4-g128-sym", "int4-g64-sym", "int4-g32-sym", "int4-g32-asym"),
        *("int8-g128-sym", "int8-g32-sym"),
    ),
    "tensorrt": ("int4-g128-sym", "int4-g64-sym", "fp8-e4m3-channel", "int8-channel-sym"),
}
"""By format, without regard to widths and targets. INT8 per row of an ONNX loses more than in
groups for nearly the same bytes, and onnxruntime dequantizes it whole in every run."""
_ANY_WIDTH: Mapping[str, tuple[str, ...]] = {"onnx": ("int8-channel-sym",)}
"""By format: linears whose width none of the above divides; onnxruntime fetches no embedding rows
from them."""


def candidate_grids(
    format_name: str,
    shape: Sequence[int],
    executes: Callable[[str], bool],
    *,
    is_embedding: bool = False,
) -> tuple[str, ...]:
    """Grids for a matrix (or a stack of matrices) of this shape, row width last; never none.

    `executes` says of a grid whether the target does.
    """
    width = shape[-1]
    grids = _usable(_GRIDS[format_name], width, executes)
    if not grids and not is_embedding:
        grids = _usable(_ANY_WIDTH.get(format_name, ()), width, executes)
    return grids or (PLAIN,)


def _usable(grids: Sequence[str], width: int, executes: Callable[[str], bool]) -> tuple[str, ...]:
    return tuple(grid for grid in grids if _divides(grid, width) and executes(grid))


def _divides(grid: str, width: int) -> bool:
    if grid in INTEGERS:
        return INTEGERS[grid].divides(width)
    if grid in FLOAT8:
        return width % (FLOAT8[grid].block_columns or width) == 0
    return width % block_weights(Type[grid]) == 0
