"""vLLM in this process: a checkpoint folder or a Hub id on NVIDIA GPUs."""

from tightfit.runtimes.vllm.model import VllmModel
from tightfit.runtimes.vllm.package import unavailable

__all__ = ["VllmModel", "unavailable"]
