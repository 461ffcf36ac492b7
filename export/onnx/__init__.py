"""ONNX graphs built directly from quantized tensors: no torch module, no tracing."""
