"""Helpers that several tests share; imported as `support.…` (pytest's `pythonpath`)."""
