"""The two Python packages of TensorRT, which share their interface.

`tensorrt_rtx` (TensorRT for RTX) builds for named compute capabilities on any machine;
`tensorrt` (classical) builds only for the GPU of the machine that it runs on.
"""

import importlib
import importlib.util
from enum import StrEnum
from typing import Any

from tightfit.errors import MissingPackageError


class Package(StrEnum):
    """Importable name of the package."""

    RTX = "tensorrt_rtx"
    CLASSIC = "tensorrt"


_INSTALL = {
    Package.RTX: "pip install 'tightfit[tensorrt]' (NVIDIA's proprietary licence)",
    Package.CLASSIC: "pip install tensorrt on the machine that has the GPU; engines that are "
    "built without one come from `tightfit export --format tensorrt`",
}


def check_package(package: Package) -> None:
    """Raise `MissingPackageError` when the package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise _missing(package)


def import_package(package: Package) -> Any:
    """The module; raises `MissingPackageError`. Loads hundreds of MB: only children call this."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise _missing(package) from None


def package_of(builder: str) -> Package:
    """The package that built an engine, from its record: `tensorrt_rtx 1.7.1.116`."""
    return Package(builder.split()[0])


def _missing(package: Package) -> MissingPackageError:
    return MissingPackageError(
        f"TensorRT engines need the package {package}, which is not installed",
        hint=f"install it: {_INSTALL[package]}",
    )


def implement(base: Any, **methods: Any) -> Any:
    """An object of a subclass of TensorRT's interface `base`, whose module is chosen at run time.

    `methods` get the object as their first argument.
    """
    return type(base.__name__, (base,), methods)()
