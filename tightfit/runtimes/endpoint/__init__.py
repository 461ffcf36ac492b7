"""A model behind an OpenAI-compatible HTTP server: vLLM, SGLang, llama.cpp's, TGI and others."""

from tightfit.runtimes.endpoint.client import Endpoint
from tightfit.runtimes.endpoint.http import Retries

__all__ = ["Endpoint", "Retries"]
