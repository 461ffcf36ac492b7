"""llama.cpp's file types on a model: the ggml type of every tensor, by GGUF or checkpoint name."""

from collections.abc import Mapping, Sequence

from tightfit.calib.architecture import Architecture
from tightfit.calib.dimensions import ModelDimensions
from tightfit.calib.shapes import tensor_shapes
from tightfit.targets.schemes.ggml_file_types import FileType, assign_types, ggml_file_type
from tightfit.targets.schemes.ggml_types import GgmlType


def gguf_shapes(
    architecture: Architecture, dimensions: ModelDimensions
) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors by GGUF name, rows before columns."""
    names = architecture.gguf_names(dimensions)
    parameters = tensor_shapes(architecture, dimensions)
    shapes: dict[str, tuple[int, ...]] = {names[name]: size for name, size in parameters.items()}
    scaling = dimensions.rope_scaling
    if scaling is not None and scaling.kind == "llama3":
        shapes["rope_freqs.weight"] = (dimensions.head_dim // 2,)
    return shapes


def scheme_types(
    scheme: str,
    shapes: Mapping[str, Sequence[int]],
    architecture: Architecture,
    dimensions: ModelDimensions,
) -> dict[str, GgmlType]:
    """The ggml type of every tensor, as `export` will assign them (it always calibrates)."""
    return assign_types(
        ggml_file_type(scheme),
        shapes,
        architecture=architecture.gguf_arch,
        n_layers=dimensions.n_layers,
        n_heads=dimensions.n_heads,
        n_kv_heads=dimensions.n_kv_heads,
        calibrated=True,
    )


def file_type_storage(
    file_type: FileType, architecture: Architecture, dimensions: ModelDimensions
) -> dict[str, str]:
    """Name of the ggml type of every tensor by checkpoint name, in the model's order."""
    names = architecture.gguf_names(dimensions)
    parameters = tensor_shapes(architecture, dimensions)
    shapes = {names[name]: shape for name, shape in parameters.items()}
    types = scheme_types(file_type.name, shapes, architecture, dimensions)
    return {name: types[names[name]].name for name in parameters}
