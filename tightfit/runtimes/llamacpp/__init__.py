"""llama.cpp, run in a child process: the runtime in which a GGUF file is verified and measured."""

from tightfit.runtimes.llamacpp.client import LlamaCpp
from tightfit.runtimes.llamacpp.results import Generation, StopReason, SystemInfo

__all__ = ["Generation", "LlamaCpp", "StopReason", "SystemInfo"]
