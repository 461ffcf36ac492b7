"""Where the parts of a block's work lie in the job's folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BlockFiles:
    """Files of one block."""

    folder: Path
    layer: int

    @property
    def entering(self) -> str:
        """States that enter the block."""
        return states_name(self.layer)

    @property
    def leaving(self) -> str:
        """States that leave it."""
        return states_name(self.layer + 1)

    @property
    def trunk(self) -> str:
        """States that leave a mixture without its routed experts."""
        return f"trunk-{self.layer:05d}"

    @property
    def to_experts(self) -> str:
        """Tokens as the routed experts read them."""
        return f"to-experts-{self.layer:05d}"

    @property
    def routed(self) -> Path:
        """Which experts each token visits."""
        return self.folder / f"routed-{self.layer:05d}.st"

    @property
    def prior(self) -> Path:
        """What the experts take from the trunk's quantization."""
        return self.folder / f"prior-{self.layer:05d}.st"


def states_name(layer: int) -> str:
    """Name of the states that enter a block, or the final norm."""
    return f"hidden-{layer:05d}"
