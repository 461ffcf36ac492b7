"""onnxruntime, which an extra installs: CUDA users have `onnxruntime-gpu` in its place."""

from types import ModuleType

from tightfit.errors import MissingPackageError


def require_onnxruntime() -> ModuleType:
    """The module; raises `MissingPackageError` when it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            "ONNX files are read back, verified and run by onnxruntime, which is not installed",
            allowed="any build of it: onnxruntime (CPU) or onnxruntime-gpu (CUDA)",
            hint="pip install 'tightfit[onnx]'",
        ) from error
    module: ModuleType = onnxruntime
    return module
