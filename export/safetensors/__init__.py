"""Quantized Hugging Face checkpoints: GPTQ, AWQ, compressed-tensors and ModelOpt."""
