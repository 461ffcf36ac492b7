"""Checkpoints of integers: GPTQ, AWQ, compressed-tensors and ModelOpt."""
