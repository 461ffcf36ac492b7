"""The embedded model as a float32 GGUF, written without tightfit's walk: a lossless baseline."""

from pathlib import Path

from safetensors.torch import load_file

from support.gguf_models import float_gguf

TINY_R1 = Path(__file__).parents[2] / "calib" / "embedded" / "tiny-r1"


def tiny_r1_gguf(folder: Path) -> Path:
    """Write it into `folder` (14 MB) and return the file."""
    return float_gguf(TINY_R1, folder / "tiny-r1.gguf", load_file(TINY_R1 / "model.safetensors"))[0]
