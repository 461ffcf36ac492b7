"""Proof that an artifact is what its manifest says, and that its runtime computes the same."""
