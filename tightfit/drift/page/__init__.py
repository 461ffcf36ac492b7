"""The drift report as one self-contained HTML page."""
