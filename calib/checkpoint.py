"""A checkpoint: a model folder read one tensor at a time.

Opening reads config.json and the headers of all files, so that a damaged or foreign checkpoint is
found before any work; `load` maps the file and gives one tensor, FP8 dequantized on the way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from tightfit.calib.architecture import Architecture, readable_architecture
from tightfit.calib.config import CONFIG_NAME, ModelConfig, read_config
from tightfit.calib.dimensions import ModelDimensions, dimensions_of
from tightfit.calib.float8_blocks import Float8Scheme, dequantize
from tightfit.calib.locate import ModelSource
from tightfit.calib.safetensors_header import StoredTensor
from tightfit.calib.stored_precision import read_precision
from tightfit.calib.tensor_index import INDEX_NAME, index_folder

COMPANIONS = (
    CONFIG_NAME,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
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
    """How FP8 weights are scaled; None for a plain checkpoint."""
    stored: Mapping[str, StoredTensor]
    """Everything that the files hold by name, scales included."""

    @property
    def path(self) -> Path:
        """The folder."""
        return self.source.path

    @property
    def tied_head(self) -> bool:
        """Whether the output head is the embedding."""
        return self.dimensions.tie_word_embeddings

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors, scales included."""
        return sum(tensor.nbytes for tensor in self.stored.values())

    @property
    def files(self) -> tuple[Path, ...]:
        """All that an artifact is made from: config.json, tokenizer, index, shards in order."""
        small = (self.path / name for name in (*COMPANIONS, INDEX_NAME))
        held = [file for file in small if file.is_file()]
        return (*held, *sorted({tensor.file for tensor in self.stored.values()}))

    def names(self) -> tuple[str, ...]:
        """Stored tensors of the model in the files' order, without the scales of FP8 weights."""
        return tuple(name for name in self.stored if not self.is_scale(name))

    def is_scale(self, name: str) -> bool:
        """Whether a stored tensor is the scale of an FP8 weight."""
        if self.float8 is None or not name.endswith(self.float8.suffix):
            return False
        weight = self.stored.get(name.removesuffix(self.float8.suffix))
        return weight is not None and weight.dtype == torch.float8_e4m3fn

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._stored(name).shape

    def stored_dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor in its file."""
        return self._stored(name).dtype

    def load(self, name: str) -> Tensor:
        """A tensor: BF16, F16 and F32 as stored (memory-mapped), FP8 dequantized to float32.

        The output head of a tied checkpoint is its embedding.
        """
        name = self._resolve(name)
        weight = self._read(name)
        if weight.dtype != torch.float8_e4m3fn:
            return weight
        assert self.float8 is not None, "validate refuses FP8 weights without a scheme"
        scale = self._read(self.float8.scale_name(name))
        return dequantize(weight, scale, self.float8.block)

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

    def _stored(self, name: str) -> StoredTensor:
        return self.stored[self._resolve(name)]

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
    architecture = readable_architecture(config.text("model_type"))
    return Checkpoint(
        source=source,
        config=config,
        dimensions=dimensions_of(config),
        architecture=architecture,
        float8=read_precision(config),
        stored=index_folder(source.path),
    )
