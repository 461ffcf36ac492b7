"""What every tensor loses on every grid, measured on calibration data."""
