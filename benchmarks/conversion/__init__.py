"""GGUF of a checkpoint without calibration: ours in one pass, and llama.cpp's two programs."""
