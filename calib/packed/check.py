"""Holding the parts of packed matrices against config.json, from headers alone."""

from collections.abc import Mapping

from tightfit.calib.packed.options import GIVE_ORIGINAL
from tightfit.calib.packed.scheme import WEIGHT, PackedScheme
from tightfit.calib.safetensors_header import StoredTensor
from tightfit.errors import CheckpointError

_DIFFERENT = "quantization_config and the weights do not belong together: download both again"


def check_whole(scheme: PackedScheme, stored: Mapping[str, StoredTensor], *, origin: str) -> None:
    """Raise `CheckpointError` for parts without codes, and where nothing is packed at all."""
    is_any = False
    for name, tensor in stored.items():
        if not name.endswith(scheme.suffixes):
            continue
        if scheme.weight_name(name, stored) is not None:
            is_any = True
        elif not name.endswith(WEIGHT):
            suffix = next(suffix for suffix in scheme.suffixes if name.endswith(suffix))
            codes = name.removesuffix(suffix) + scheme.codes
            raise CheckpointError(
                f"{tensor.file}: {name!r} is there, and its codes are not",
                allowed=f"codes are {scheme.codes_dtype} in {codes!r}",
                hint=_DIFFERENT,
            )
    if not is_any:
        raise CheckpointError(
            f"{origin}: its quantization_config promises {scheme.grid}, and no tensor is stored so",
            allowed=f"codes are {scheme.codes_dtype} in tensors named *{scheme.codes}",
            hint="if the weights are floats, delete quantization_config",
        )


def check_parts(
    scheme: PackedScheme, stored: Mapping[str, StoredTensor], name: str, shape: tuple[int, ...]
) -> None:
    """Raise `CheckpointError` for the first wrong part of a packed weight of this shape."""
    file = stored[scheme.part_name(name, scheme.codes)].file
    if scheme.codes != WEIGHT and name in stored:
        raise CheckpointError(
            f"{file}: {name!r} is there twice, packed and as a float",
            allowed="a linear is stored in one way",
            hint="the checkpoint was put together by hand: " + GIVE_ORIGINAL,
        )
    n_rows, n_columns = _matrix(scheme, file, name, shape)
    for suffix, part in scheme.parts((n_rows, n_columns)).items():
        part_name = scheme.part_name(name, suffix)
        tensor = stored.get(part_name)
        if tensor is None:
            if not part.required:
                continue
            raise CheckpointError(
                f"{file}: {part_name!r} is missing",
                allowed=f"{name!r} is {scheme.grid}, stored as {_needed(scheme, shape)}",
                hint="the codes mean nothing without it: download the checkpoint again",
            )
        if tensor.shape != part.shape:
            raise CheckpointError(
                f"{tensor.file}: {part_name!r} has the shape {tensor.shape}",
                allowed=f"{part.shape} for a weight of {shape} in {scheme.grid}",
                hint=_DIFFERENT,
            )
        if tensor.dtype not in part.dtypes:
            raise CheckpointError(
                f"{tensor.file}: {part_name!r} is stored as {tensor.dtype}",
                allowed="allowed: " + ", ".join(map(str, part.dtypes)),
                hint=_DIFFERENT,
            )


def _matrix(
    scheme: PackedScheme, file: object, name: str, shape: tuple[int, ...]
) -> tuple[int, int]:
    """Rows and columns that the format can hold."""
    if len(shape) != 2:
        raise CheckpointError(
            f"{file}: {name!r} is packed, and config.json promises {shape}",
            allowed="matrices are packed",
            hint="config.json and the weights are of different models: download both again",
        )
    n_rows, n_columns = shape
    row_multiple, column_multiple = scheme.multiples
    for count, what, multiple in (
        (n_columns, "columns", scheme.group_size or 1),
        (n_columns, "columns", column_multiple),
        (n_rows, "rows", row_multiple),
    ):
        if count % multiple:
            raise CheckpointError(
                f"{file}: {name!r} of shape {shape} cannot be {scheme.grid}: it has {count} {what}",
                allowed=f"a multiple of {multiple} {what}",
                hint=GIVE_ORIGINAL,
            )
    return n_rows, n_columns


def _needed(scheme: PackedScheme, shape: tuple[int, ...]) -> str:
    n_rows, n_columns = shape
    parts = scheme.parts((n_rows, n_columns))
    return ", ".join(suffix for suffix, part in parts.items() if part.required)
