"""What comes in: checkpoints, architectures, calibration text, activation statistics."""
