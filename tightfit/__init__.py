"""tightfit: the best DeepSeek-R1 that fits the hardware you have, with proof of what it lost."""

__version__ = "0.1.0"
