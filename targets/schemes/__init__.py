"""Quantization schemes: which type each tensor of an artifact gets, from names and shapes alone."""
