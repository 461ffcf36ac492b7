"""`tightfit doctor`: what this machine has, and what to install."""

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path

from tightfit.cli.options import JsonFlag, examples
from tightfit.cli.output import emit, table

EXAMPLES = examples(
    ("doctor", "check Python, torch, the runtimes, grading, disk and the Hub's cache"),
    ("doctor --json", "the same for a script"),
)
_LEAST_PYTHON = (3, 11)
_LEAST_FREE_GIB = 20.0
"""Room for a 7B checkpoint (15 GB) and its 4-bit artifact."""
_GIB = 1 << 30
_PROVIDER = "ExecutionProvider"
"""End of the name of each of onnxruntime's backends."""
_TENSORRT = "tensorrt-rtx-cu12"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One finding."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    """What to do when it is not ok."""


def doctor_command(as_json: JsonFlag = False) -> None:
    """Check this machine, and say what to install.

    Always ends with status 0: a missing extra is no failure until a command needs it.
    """
    checks = [check() for check in CHECKS]
    rows = [["ok" if item.ok else "--", item.name, item.found, item.advice] for item in checks]
    emit(
        {"checks": [asdict(item) for item in checks]},
        table("", ("", "what", "found", "to do"), rows, left=4),
        as_json=as_json,
    )


def _python() -> Check:
    least = ".".join(map(str, _LEAST_PYTHON))
    return Check(
        name="Python",
        ok=sys.version_info >= _LEAST_PYTHON,
        found=platform.python_version(),
        advice="" if sys.version_info >= _LEAST_PYTHON else f"install Python {least} or newer",
    )


def _torch() -> Check:
    if util.find_spec("torch") is None:
        return Check(name="torch", ok=False, found="not installed", advice="pip install torch")
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
    else:
        device = f"CPU, {torch.get_num_threads()} threads"
    return Check(name="torch", ok=True, found=f"{torch.__version__} on {device}")


def _llamacpp() -> Check:
    from tightfit.runtimes.llamacpp.binding import INSTALL_COMMAND, PACKAGE, PACKAGE_VERSION

    found = _version(PACKAGE)
    if found is None:
        advice = f"for verify and drift: {INSTALL_COMMAND}"
    elif found != PACKAGE_VERSION:
        advice = f"exactly {PACKAGE_VERSION} is needed: {INSTALL_COMMAND}"
    else:
        advice = ""
    return Check(
        name=f"llama.cpp ({PACKAGE})",
        ok=found == PACKAGE_VERSION,
        found=found or "not installed",
        advice=advice,
    )


def _onnxruntime() -> Check:
    from tightfit.errors import MissingPackageError
    from tightfit.export.onnx.onnxruntime import require_onnxruntime

    try:
        module = require_onnxruntime()
    except MissingPackageError as error:
        return Check(
            name="onnxruntime",
            ok=False,
            found="not installed",
            advice=f"for ONNX and TensorRT exports: {error.hint}",
        )
    providers = (name.removesuffix(_PROVIDER) for name in module.get_available_providers())
    found = f"{module.__version__} with {', '.join(providers)}"
    return Check(name="onnxruntime", ok=True, found=found)


def _tensorrt() -> Check:
    found = _version(_TENSORRT)
    return Check(
        name="TensorRT for RTX",
        ok=found is not None,
        found=found or "not installed",
        advice=""
        if found
        else "for --format tensorrt: pip install 'tightfit[tensorrt]' (NVIDIA's proprietary "
        "licence)",
    )


def _checkpoints() -> Check:
    needed = ("gptqmodel", "compressed-tensors")
    absent = [name for name in needed if _version(name) is None]
    return Check(
        name="checkpoints in transformers",
        ok=not absent,
        found=f"without {', '.join(absent)}" if absent else ", ".join(needed),
        advice=f"to run GPTQ, AWQ and compressed-tensors: pip install {' '.join(absent)}"
        if absent
        else "",
    )


def _grading() -> Check:
    found = _version("math-verify")
    advice = "" if found else "for the accuracy part of drift: pip install 'tightfit[drift]'"
    return Check(
        name="math-verify", ok=found is not None, found=found or "not installed", advice=advice
    )


def _report_page() -> Check:
    needed = ("datasets", "jinja2", "latex2mathml", "matplotlib")
    absent = [name for name in needed if _version(name) is None]
    return Check(
        name="drift report",
        ok=not absent,
        found=f"without {', '.join(absent)}" if absent else ", ".join(needed),
        advice="for --report and problem sets: pip install 'tightfit[drift]'" if absent else "",
    )


def _disk() -> Check:
    free_gib = shutil.disk_usage(Path.cwd()).free / _GIB
    enough = free_gib >= _LEAST_FREE_GIB
    advice = "" if enough else f"a 7B export needs about {_LEAST_FREE_GIB:.0f} GiB: free some"
    return Check(name="free disk here", ok=enough, found=f"{free_gib:.1f} GiB", advice=advice)


def _hub_cache() -> Check:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    writable = os.access(place, os.W_OK)
    free_gib = shutil.disk_usage(place).free / _GIB
    offline = ", offline mode" if constants.HF_HUB_OFFLINE else ""
    return Check(
        name="Hub cache",
        ok=writable,
        found=f"{cache} ({free_gib:.1f} GiB free{offline})",
        advice="" if writable else "set HF_HOME to a folder that you may write",
    )


def _hub_token() -> Check:
    from huggingface_hub import get_token

    # Only whether there is one: the token itself is never shown.
    return Check(
        name="Hub token",
        ok=True,
        found="present" if get_token() else "none (public models need none)",
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


CHECKS: tuple[Callable[[], Check], ...] = (
    _python,
    _torch,
    _llamacpp,
    _onnxruntime,
    _tensorrt,
    _checkpoints,
    _grading,
    _report_page,
    _disk,
    _hub_cache,
    _hub_token,
)
