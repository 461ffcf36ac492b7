"""onnxruntime in this process: the runtime in which an ONNX model is verified and measured."""

from tightfit.runtimes.onnx.model import OnnxModel

__all__ = ["OnnxModel"]
