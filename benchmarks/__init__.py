"""Benchmarks: figures side by side in one run, written to `docs/`."""
