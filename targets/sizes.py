"""What the tensors of a model take in a file and on the devices, one by one.

A plan adds these up for a scheme; the allocator weighs them singly. A GGUF takes ggml's bytes and
pads each tensor to 32; a graph has codes, scales and zero points, and aligns the larger parts to a
page. On the devices a discrete GPU leaves the token table of a GGUF in host memory, and a graph's
runtime keeps what it computes from the constants as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from tightfit.calib.shapes import Shape, active_fraction, tensor_shapes
from tightfit.targets.checkpoint_memory import stored_bytes as stored_bytes_of
from tightfit.targets.formats import ggml_type
from tightfit.targets.graph_memory import resident_bytes
from tightfit.targets.llamacpp_memory import device_of, host_tensors
from tightfit.targets.onnx_data import data_bytes, placed_bytes, weight_sizes
from tightfit.targets.schemes.ggml_types import GgmlType as Type
from tightfit.targets.schemes.ggml_types import tensor_bytes
from tightfit.targets.schemes.gguf import gguf_shapes
from tightfit.targets.setting import Setting

_GGUF_ALIGNMENT_BYTES = 32
"""`general.alignment` where a file does not say otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSize:
    """One tensor."""

    data_bytes: int
    """Its numbers alone."""
    file_bytes: int
    """With what aligns it, at most."""
    resident_bytes: int
    """On the devices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """Sizes of a model's tensors in a setting, for any storage of them."""

    setting: Setting
    shapes: Mapping[str, Shape]
    """Every tensor by checkpoint name, in the model's order."""
    gguf_names: Mapping[str, str]
    """GGUF name by checkpoint name; empty for a graph."""
    file_only: Mapping[str, Shape]
    """Tensors that only the GGUF has (rope's divisors), by GGUF name."""
    on_host: frozenset[str]
    """GGUF names that do not count on the devices."""

    def tensor(self, name: str, stored_as: str) -> TensorSize:
        """One tensor stored so; raises `QuantizationError` when its width does not allow it."""
        shape = self.shapes[name]
        if self.setting.format.name == "gguf":
            n_bytes = _gguf_bytes(stored_as, shape)
            hosted = self.gguf_names[name] in self.on_host
            return TensorSize(
                data_bytes=n_bytes,
                file_bytes=_aligned(n_bytes),
                resident_bytes=0 if hosted else n_bytes,
            )
        if self.setting.format.is_checkpoint:
            n_bytes = stored_bytes_of(stored_as, shape, self.setting.format.name)
            return TensorSize(data_bytes=n_bytes, file_bytes=n_bytes, resident_bytes=n_bytes)
        dimensions, graph = self.setting.dimensions, self.setting.graph
        parts = weight_sizes(stored_as, shape, graph)
        is_embedding = name == self.setting.architecture.embedding
        return TensorSize(
            data_bytes=sum(parts),
            file_bytes=sum(map(placed_bytes, parts)),
            resident_bytes=resident_bytes(
                dimensions, shape, stored_as, graph, is_embedding=is_embedding
            ),
        )

    def file_bytes(self, storage: Mapping[str, str]) -> int:
        """Tensor data of the whole file, exactly."""
        if self.setting.precision is None:
            return self.padded_bytes(storage)
        graph = self.setting.graph
        return data_bytes(
            part
            for name, shape in self.shapes.items()
            for part in weight_sizes(storage[name], shape, graph)
        )

    def padded_bytes(self, storage: Mapping[str, str]) -> int:
        """Tensor data of the file at most: what precedes a graph's tensor decides its padding."""
        extra = sum(_aligned(tensor_bytes(Type.F32, s)) for s in self.file_only.values())
        return extra + sum(self.tensor(name, kind).file_bytes for name, kind in storage.items())

    def data_bytes(self, storage: Mapping[str, str]) -> int:
        """All numbers, without what aligns them."""
        extra = sum(tensor_bytes(Type.F32, shape) for shape in self.file_only.values())
        return extra + sum(self.tensor(name, kind).data_bytes for name, kind in storage.items())

    def resident(self, storage: Mapping[str, str]) -> dict[str, int]:
        """Bytes on the devices by the name that the runtime knows."""
        found = {
            self.gguf_names.get(name, name): self.tensor(name, kind).resident_bytes
            for name, kind in storage.items()
        }
        return found | {name: tensor_bytes(Type.F32, s) for name, s in self.file_only.items()}

    def device_of(self, name: str) -> int:
        """Device of a layer split that a tensor of a GGUF lies on."""
        setting = self.setting
        return device_of(self.gguf_names[name], setting.dimensions.n_layers, setting.n_devices)

    def read_bytes(self, storage: Mapping[str, str]) -> float:
        """Bytes of weights that the devices read to decode one token, at least: as stored."""
        dimensions = self.setting.dimensions
        architecture = self.setting.architecture

        def read(name: str, stored_as: str) -> float:
            size = self.tensor(name, stored_as)
            # What a runtime computes from constants it may read as well, or not.
            n_bytes = min(size.data_bytes, size.resident_bytes)
            return n_bytes * active_fraction(architecture, dimensions, name)

        return sum(read(name, kind) for name, kind in storage.items())


def model_sizes(setting: Setting) -> ModelSizes:
    """The sizes of the setting's model."""
    architecture, dimensions = setting.architecture, setting.dimensions
    shapes = tensor_shapes(architecture, dimensions)
    if setting.format.name != "gguf":
        return ModelSizes(
            setting=setting, shapes=shapes, gguf_names={}, file_only={}, on_host=frozenset()
        )
    names = architecture.gguf_names(dimensions)
    in_file = gguf_shapes(architecture, dimensions)
    known = {names[name] for name in shapes}
    return ModelSizes(
        setting=setting,
        shapes=shapes,
        gguf_names=names,
        file_only={name: shape for name, shape in in_file.items() if name not in known},
        on_host=host_tensors(in_file, setting.target),
    )


def stored_type(stored_as: str, shape: Shape) -> Type:
    """The type of a tensor in a GGUF, where vectors are always F32."""
    return Type.F32 if len(shape) == 1 else ggml_type(stored_as)


@cache  # equal layers have equal tensors
def _gguf_bytes(stored_as: str, shape: Shape) -> int:
    return tensor_bytes(stored_type(stored_as, shape), shape)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _GGUF_ALIGNMENT_BYTES) * _GGUF_ALIGNMENT_BYTES
