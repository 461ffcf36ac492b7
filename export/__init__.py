"""Artifact writers, and the manifest that says what an artifact is."""
