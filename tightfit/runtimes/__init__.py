"""Engines that run an artifact, each behind a small client."""
