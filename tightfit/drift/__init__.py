"""Measuring what an artifact lost: token-level drift, paired accuracy, and the gate on both."""
