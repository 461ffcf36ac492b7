"""What schemes are judged for: a model, a target, a format and a workload."""

from dataclasses import dataclass, replace

from tightfit.calib.architecture import Architecture, architecture_of
from tightfit.calib.dimensions import ModelDimensions
from tightfit.targets.checkpoint_memory import tensor_parallel_devices
from tightfit.targets.formats import Format
from tightfit.targets.llamacpp_memory import MAX_SPLIT_DEVICES
from tightfit.targets.onnx_data import GraphKind
from tightfit.targets.profile import Target
from tightfit.targets.workload import Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One question to the plan."""

    dimensions: ModelDimensions
    target: Target
    format: Format
    precision: str | None
    """What a graph computes in: `float16` or `float32`; None for no graph."""
    workload: Workload

    @property
    def architecture(self) -> Architecture:
        """The model's family."""
        return architecture_of(self.dimensions.model_type)

    @property
    def graph(self) -> GraphKind:
        """As far as bytes depend on it."""
        assert self.precision is not None, "only ONNX and TensorRT have graphs"
        return GraphKind(precision=self.precision, own_operators=self.format.name == "onnx")

    @property
    def n_devices(self) -> int:
        """Devices of the target that the format's runtime spreads a model over."""
        if self.format.is_checkpoint:
            return tensor_parallel_devices(self.dimensions.n_heads, self.target.device_count)
        return min(self.target.device_count, MAX_SPLIT_DEVICES) if self.format.spreads else 1

    @property
    def available_bytes(self) -> int:
        """Memory of those devices for the runtime and the model."""
        return self.target.device_available_bytes * self.n_devices

    def on(self, target: Target) -> "Setting":
        """The same on another target; a graph's precision becomes the usual one there."""
        precision = usual_precision(self.format, target)
        return replace(self, target=target, precision=precision)

    def at(self, context_tokens: int) -> "Setting":
        """The same at another context."""
        return replace(self, workload=replace(self.workload, context_tokens=context_tokens))


def usual_precision(kind: Format, target: Target) -> str | None:
    """What a graph for the target computes in unless told otherwise; None for no graph."""
    if kind.name == "gguf" or kind.is_checkpoint:
        return None
    return "float16" if target.kind == "gpu" else "float32"
