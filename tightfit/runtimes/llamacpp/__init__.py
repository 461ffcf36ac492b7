"""llama.cpp, run in a child process: the runtime in which a GGUF file is verified and measured."""

from tightfit.runtimes.llamacpp.client import LlamaCpp

__all__ = ["LlamaCpp"]
