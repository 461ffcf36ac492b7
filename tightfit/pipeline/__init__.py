"""Jobs that join the stages: export, drift and the calibration walk between them."""
