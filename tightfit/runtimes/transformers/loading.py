"""Loading a checkpoint folder with transformers, and its failures as our errors.

Whatever transformers reads on this machine runs: unquantized weights, FP8 (dequantized where the
machine has no FP8 kernels), compressed-tensors, and GPTQ or AWQ where their packages are.
"""

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tightfit.calib.config import CONFIG_NAME
from tightfit.calib.json_file import read_json
from tightfit.errors import MissingPackageError, RuntimeFailureError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HALVES = (torch.bfloat16, torch.float16)
_SHOWN_NAMES = 3
_DAMAGED_HINT = "download or write the folder again: config.json and the weights must be whole"


def find_device(name: str) -> torch.device:
    """A torch device; raises `UsageError` and `RuntimeFailureError` when it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"there is no device {name!r}", allowed="cpu, cuda or cuda:0, cuda:1, ..."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeFailureError(
            f"the device {name} was asked for, and this machine has no NVIDIA GPU or torch is "
            f"built without CUDA",
            hint="use the CPU, or run the same command on the machine that has the card",
        )
    return device


def load_model(
    folder: Path, *, device: torch.device, dtype: torch.dtype | None
) -> "PreTrainedModel":
    """The model of a folder; `dtype` None is float32 on the CPU, and as stored elsewhere.

    Raises `MissingPackageError`, and `RuntimeFailureError` when transformers refuses the folder,
    weights are missing, or the cache of its attention is of a kind that cannot be batched here.
    """
    from transformers import AutoModelForCausalLM

    if not (folder / CONFIG_NAME).is_file():
        raise RuntimeFailureError(
            f"{folder} is no folder with {CONFIG_NAME}",
            hint="give a checkpoint folder with config.json, *.safetensors and tokenizer.json",
        )
    on_cpu = device.type == "cpu"
    dtype = dtype or (torch.float32 if on_cpu else None)
    if not on_cpu and importlib.util.find_spec("accelerate") is None:
        raise MissingPackageError(
            f"loading a checkpoint onto {device} needs the package accelerate, which is not "
            f"installed",
            hint="install it: pip install accelerate",
        )
    # Typed as if there were no `output_loading_info`, and models as if no method were inherited.
    load: Any = AutoModelForCausalLM.from_pretrained
    model: Any
    with _no_progress_bars(), _process_kept(), _failures_of_loading(folder):
        model, info = load(
            folder,
            dtype=dtype or "auto",
            # Straight to the card, without a second copy in this machine's memory.
            device_map=None if on_cpu else {"": device},
            # Code that comes with weights is never run, and no missing file is looked for online.
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **_how_to_load(folder),
        )
    # transformers fills in what it misses with random numbers and a warning.
    absent = sorted(info["missing_keys"])
    if absent:
        more = ", ..." if len(absent) > _SHOWN_NAMES else ""
        raise RuntimeFailureError(
            f"{folder} lacks {len(absent)} tensors: {', '.join(absent[:_SHOWN_NAMES])}{more}",
            hint=_DAMAGED_HINT,
        )
    _check_cache(folder, model)
    if dtype is torch.float32:
        # Beside dequantized FP8 weights transformers leaves the others as they are stored.
        for parameter in model.parameters():
            if parameter.dtype in _HALVES:
                parameter.data = parameter.data.float()
    loaded: PreTrainedModel = model.eval()
    return loaded


def _how_to_load(folder: Path) -> dict[str, Any]:
    """Options of `from_pretrained` that the format of the folder asks for.

    transformers 5.23 allots the zero points of compressed-tensors' packed integers unpacked, and
    refuses the files; dequantized while loading they are read as they are.
    """
    section = read_json(folder / CONFIG_NAME).get("quantization_config") or {}
    groups = (section.get("config_groups") or {}).values()
    asymmetric = any((group.get("weights") or {}).get("symmetric") is False for group in groups)
    if section.get("quant_method") != "compressed-tensors" or not asymmetric:
        return {}
    from transformers import CompressedTensorsConfig

    return {"quantization_config": CompressedTensorsConfig(dequantize=True)}


@contextlib.contextmanager
def failures_of_running(folder: str | None) -> Iterator[None]:
    """Turn torch's failures into `RuntimeFailureError`."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeFailureError(
            f"transformers failed on {folder}: {_in_one_line(error)}",
            hint="if memory ran out: ask for a shorter context or fewer prompts at a time; if this "
            "machine lacks a kernel for these weights: run an unquantized checkpoint",
        ) from error


@contextlib.contextmanager
def _failures_of_loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(
            f"transformers needs another package to load {folder}: {_in_one_line(error)}",
            hint="install the package that is named there, e.g. `pip install "
            "compressed-tensors` for FP8 weights",
        ) from error
    except Exception as error:  # from KeyError to SafetensorError: no common class
        raise RuntimeFailureError(
            f"transformers does not load {folder}: {_in_one_line(error)}", hint=_DAMAGED_HINT
        ) from error


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """Undo what the import of gptqmodel does to the process, and keep its banner off stdout.

    It points HF_HOME at a folder of its own and sets the level of all logs.
    """
    environment, level = dict(os.environ), logging.getLogger().level
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        logging.getLogger().setLevel(level)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging as their_logging

    shown = their_logging.is_progress_bar_enabled()
    their_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # no types there
    try:
        yield
    finally:
        if shown:
            their_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _check_cache(folder: Path, model: "PreTrainedModel") -> None:
    """Rows are moved within the cache, which only keys and values of all positions allow."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    foreign = sorted(kind.__name__ for kind in kinds if not issubclass(kind, DynamicLayer))
    if foreign:
        raise RuntimeFailureError(
            f"the attention of {folder} keeps a state of the kind {', '.join(foreign)}",
            allowed="models whose cache holds the keys and values of every token",
            hint="serve it elsewhere, and measure it with --endpoint",
        )
