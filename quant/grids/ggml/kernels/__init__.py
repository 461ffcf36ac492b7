"""The fits of ggml's grids compiled for CPUs: block by block, as the formulas read."""
