"""What is measured: the model, the grids of its matrices, the tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightfit.calib.decoder import Decoder, WeightSource
from tightfit.pipeline.quantize import Method
from tightfit.pipeline.sensitivity.tokens import Sequences
from tightfit.targets.allocation.roles import role_of

_DEPTHS = (0.25, 0.75)
"""Where in the model a role is measured: early and late, but neither first nor last."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Subject:
    """A model and what is asked of it."""

    decoder: Decoder
    source: WeightSource
    options: Mapping[str, Sequence[str]]
    """Grids to judge of every matrix by checkpoint name."""
    method: Method
    sequences: Sequences
    """Token ids that the losses are predicted on."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence."""
        return tuple(map(len, self.sequences))

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return bool(self.decoder.config.tie_word_embeddings)

    @property
    def head_name(self) -> str:
        """Checkpoint name of the head's matrix."""
        names = self.decoder.architecture
        return names.embedding if self.tied else names.head

    def weight(self, name: str) -> Tensor:
        """A matrix in float32 on the device."""
        return self.source(name).to(self.decoder.device, torch.float32)

    def linears(self, layer: int) -> dict[str, str]:
        """Module path of the block's judged linears to their checkpoint name."""
        architecture = self.decoder.architecture
        paths = self.decoder.block_kind(layer).linears
        names = {path: architecture.tensor(layer, f"{path}.weight") for path in paths}
        return {path: name for path, name in names.items() if self.grids(name)}

    def grids(self, name: str) -> Sequence[str]:
        """Grids to judge of a matrix."""
        return self.options.get(name, ())

    def role(self, name: str) -> str:
        """Role of a judged matrix."""
        return role_of(self.decoder.architecture, name)

    def measured_names(self) -> frozenset[str]:
        """The matrices whose KL is measured: each role at two depths, head and embedding."""
        roles: dict[str, list[str]] = {}
        for layer in range(self.decoder.n_blocks):
            for name in self.linears(layer).values():
                roles.setdefault(self.role(name), []).append(name)
        chosen = {names[int(depth * len(names))] for names in roles.values() for depth in _DEPTHS}
        names = self.decoder.architecture
        chosen.update(name for name in (names.embedding, names.head) if self.grids(name))
        return frozenset(chosen)
