"""Whether vLLM can run here."""

import importlib.util

from tightfit.errors import MissingPackageError, RuntimeFailureError, TightfitError


def unavailable() -> TightfitError | None:
    """Why this machine cannot run vLLM: the package or a GPU is missing; None where it can."""
    if importlib.util.find_spec("vllm") is None:
        return MissingPackageError(
            "vLLM is not installed",
            allowed="a machine with an NVIDIA GPU and the package `vllm`",
            hint="pip install vllm, in an environment of its own since it brings its own torch; "
            "or serve the model elsewhere and give its address with --endpoint",
        )
    import torch

    if not torch.cuda.is_available():
        return RuntimeFailureError(
            "vLLM needs an NVIDIA GPU and torch for CUDA, and this machine has not both",
            hint="run it on the machine that has the card, or serve the model there and give its "
            "address with --endpoint",
        )
    return None
