"""What an export costs as its work grows: over weights, over layers, over calibration tokens."""
