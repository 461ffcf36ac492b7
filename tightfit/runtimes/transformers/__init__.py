"""transformers in this process: the runtime of a checkpoint's own safetensors."""

from tightfit.runtimes.transformers.model import TransformersModel

__all__ = ["TransformersModel"]
