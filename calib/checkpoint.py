"""A checkpoint: a model folder read one tensor at a time.

Opening reads config.json and the headers of all files, so that a damaged or foreign checkpoint is
found before any work; `load` maps the file and gives one tensor, dequantized on the way. A linear
of a quantized checkpoint is known by the name of its weight, however many tensors store it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from tightfit.calib.architecture import Architecture, architecture_of
from tightfit.calib.config import CONFIG_NAME, ModelConfig, read_config
from tightfit.calib.dimensions import ModelDimensions, dimensions_of
from tightfit.calib.float8_blocks import Float8Scheme, StoredFloat8, dequantize
from tightfit.calib.locate import ModelSource
from tightfit.calib.logical import (
    is_heads,
    is_keys,
    is_stack,
    split_kv_b,
    split_shape,
    stored_names,
)
from tightfit.calib.packed.modelopt import MODELOPT_CONFIG_NAME, modelopt_section
from tightfit.calib.packed.scheme import PackedScheme
from tightfit.calib.packed.stored import StoredInteger
from tightfit.calib.safetensors_header import StoredTensor
from tightfit.calib.stored_precision import read_precision
from tightfit.calib.tensor_index import INDEX_NAME, index_folder

COMPANIONS = (
    CONFIG_NAME,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "LICENSE",
)
"""Small files beside the weights that travel with an artifact, so that it can be verified alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A model folder: its config, and its tensors on demand."""

    source: ModelSource
    config: ModelConfig
    dimensions: ModelDimensions
    architecture: Architecture
    float8: Float8Scheme | None
    """How FP8 weights are scaled; None for a checkpoint of other types."""
    packed: PackedScheme | None
    """How integer weights are stored; None for a checkpoint of floats."""
    stored: Mapping[str, StoredTensor]
    """Everything that the files hold by name, scales and codes included."""

    @property
    def path(self) -> Path:
        """The folder."""
        return self.source.path

    @property
    def tied_head(self) -> bool:
        """Whether the output head is the embedding."""
        return self.dimensions.tie_word_embeddings

    @property
    def is_quantized(self) -> bool:
        """Whether weights are stored as FP8 or integers."""
        return self.float8 is not None or self.packed is not None

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors, scales included."""
        return sum(tensor.nbytes for tensor in self.stored.values())

    @property
    def files(self) -> tuple[Path, ...]:
        """All that an artifact is made from: config.json, tokenizer, index, shards in order."""
        names = (*COMPANIONS, MODELOPT_CONFIG_NAME, INDEX_NAME)
        small = (self.path / name for name in names)
        held = [file for file in small if file.is_file()]
        return (*held, *sorted({tensor.file for tensor in self.stored.values()}))

    def names(self) -> tuple[str, ...]:
        """Tensors of the model in the files' order: weights, whatever stores them, and the rest."""
        return tuple(name for stored in self.stored for name in self._names_at(stored))

    def _names_at(self, stored: str) -> tuple[str, ...]:
        if self.is_scale(stored):
            return ()
        name = self.packed.weight_name(stored, self.stored) if self.packed else None
        if self.packed is None or name is None:
            return (stored,)
        return (name,) if stored == self.packed.part_name(name, self.packed.codes) else ()

    def is_scale(self, name: str) -> bool:
        """Whether a stored tensor is the scale of an FP8 weight."""
        if self.float8 is None or not name.endswith(self.float8.suffix):
            return False
        weight = self.stored.get(name.removesuffix(self.float8.suffix))
        return weight is not None and weight.dtype == torch.float8_e4m3fn

    def mtp_names(self) -> tuple[str, ...]:
        """Stored tensors of multi-token-prediction layers, which follow the last layer."""
        first, count = self.dimensions.n_layers, self.dimensions.n_mtp_layers
        prefixes = tuple(self.architecture.tensor(first + number, "") for number in range(count))
        return tuple(name for name in self.names() if name.startswith(prefixes))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor by its logical or stored name."""
        name = self._resolve(name)
        if is_heads(name):
            return split_shape(name, self.dimensions)
        names = stored_names(name, self.dimensions)
        scheme = self._scheme_of(names[0])
        shape = self._codes(names[0]).shape
        if scheme is not None:
            shape = scheme.shape(shape)
        return (len(names), *shape) if is_stack(name) else shape

    def stored_dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor in its file, of the codes for a packed weight."""
        first = stored_names(self._resolve(name), self.dimensions)[0]
        return self._codes(first).dtype

    def is_packed(self, name: str) -> bool:
        """Whether a weight is stored as integers and their parts."""
        return self._scheme_of(self._resolve(name)) is not None

    def stored_grid(self, name: str) -> str | None:
        """Grid of a stored matrix, e.g. `int4-g128-sym` or `fp8-e4m3-block128`, by headers alone.

        None for floats; names of merged or split tensors are not stored.
        """
        name = self._resolve(name)
        scheme = self._scheme_of(name)
        if scheme is not None:
            return scheme.grid
        stored = self.stored[name]
        if stored.dtype != torch.float8_e4m3fn:
            return None
        assert self.float8 is not None, "validate refuses FP8 weights without a scheme"
        scale = self.stored[self.float8.scale_name(name)]
        return self.float8.grid(scale.shape, stored.shape[0])

    def load(self, name: str) -> Tensor:
        """A tensor by its logical or stored name: floats as stored, the rest as float32.

        What is stored as it is named is memory-mapped. The output head of a tied checkpoint is its
        embedding; a stack of experts is copied together. Raises `CheckpointError` for integers that
        are not what config.json says.
        """
        name = self._resolve(name)
        if is_stack(name):
            return torch.stack([self.load(of) for of in stored_names(name, self.dimensions)])
        if is_heads(name):
            (stored,) = stored_names(name, self.dimensions)
            k_b, v_b = split_kv_b(self.load(stored), self.dimensions)
            return k_b if is_keys(name) else v_b
        packed = self.load_integer(name)
        if packed is not None:
            return packed.dequantize()
        weight = self._read(name)
        if weight.dtype != torch.float8_e4m3fn:
            return weight
        assert self.float8 is not None, "validate refuses FP8 weights without a scheme"
        scale = self._read(self.float8.scale_name(name))
        return dequantize(weight, scale, self.float8.block)

    def load_rows(self, name: str, rows: slice) -> Tensor:
        """Some rows of a matrix that is stored as it is named, as `load` gives them.

        Only they are read. Of an FP8 matrix in blocks the first row must begin a block.
        """
        weight = self._read(name)
        if weight.dtype != torch.float8_e4m3fn:
            return weight[rows]
        assert self.float8 is not None, "validate refuses FP8 weights without a scheme"
        scale = self._read(self.float8.scale_name(name))
        return dequantize(
            weight[rows], self.float8.scale_rows(scale, rows, len(weight)), self.float8.block
        )

    def load_float8(self, name: str) -> StoredFloat8 | None:
        """A stored FP8 matrix as it is; None for another type, and for merged or split tensors."""
        stored = self.stored.get(self._resolve(name))
        if stored is None or stored.dtype != torch.float8_e4m3fn:
            return None
        assert self.float8 is not None, "validate refuses FP8 weights without a scheme"
        return StoredFloat8(
            values_OI=self._read(name), scale=self._read(self.float8.scale_name(name))
        )

    def load_integer(self, name: str) -> StoredInteger | None:
        """A packed matrix as it is; None for another type, and for merged or split tensors.

        Raises `CheckpointError` where its zero points or its act-order are not what config.json
        says.
        """
        name = self._resolve(name)
        scheme = self._scheme_of(name)
        if scheme is None:
            return None
        held = {suffix: scheme.part_name(name, suffix) for suffix in scheme.suffixes}
        parts = {suffix: self._read(part) for suffix, part in held.items() if part in self.stored}
        return scheme.unpack(name, parts)

    def same_bytes(self, name: str, other: str) -> bool:
        """Whether two stored tensors are the same, without resolving a tied head."""
        one, two = self.stored[name], self.stored[other]
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            return False
        return torch.equal(self._read(name).view(torch.uint8), self._read(other).view(torch.uint8))

    def _resolve(self, name: str) -> str:
        if self.tied_head and name == self.architecture.head:
            return self.architecture.embedding
        return name

    def _scheme_of(self, stored: str) -> PackedScheme | None:
        is_held = self.packed is not None and self.packed.holds(stored, self.stored)
        return self.packed if is_held else None

    def _codes(self, stored: str) -> StoredTensor:
        scheme = self._scheme_of(stored)
        return self.stored[stored if scheme is None else scheme.part_name(stored, scheme.codes)]

    def _read(self, name: str) -> Tensor:
        # Opened anew each time: it costs a tenth of a millisecond, and hundreds of shards would
        # exhaust the process's file descriptors.
        with safe_open(self.stored[name].file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def open_checkpoint(source: ModelSource | Path) -> Checkpoint:
    """Open a model folder; raises `CheckpointError` when it is damaged or not for us.

    Run `tightfit.calib.validate.validate` on the result before working with it.
    """
    if isinstance(source, Path):
        source = ModelSource(path=source, id=source.resolve().name, revision=None)
    config = read_config(source.path)
    architecture = architecture_of(config.text("model_type"))
    precision = read_precision(config, modelopt_section(source.path))
    return Checkpoint(
        source=source,
        config=config,
        dimensions=dimensions_of(config),
        architecture=architecture,
        float8=precision if isinstance(precision, Float8Scheme) else None,
        packed=precision if isinstance(precision, PackedScheme) else None,
        stored=index_folder(source.path),
    )
