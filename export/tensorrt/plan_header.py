"""The first 64 bytes of an engine file (a "plan") of TensorRT for RTX.

NVIDIA does not document them. Found by building the same network for every compute capability and
comparing (1.7.1.116):

    0   4  magic "vtrt"
    16  8  size of the file in bytes
    24  4  version: major, minor, patch, build, a byte each
    32  8  compute capabilities, one bit each: SM 75, 80, 86, 89, 120, 121 from the lowest
    56     of its sections (engine, weights): size, then name, offset and size of each

All numbers are little-endian. `Runtime.engine_header_size` is 64, too.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from tightfit.errors import ArtifactError

HEADER_BYTES = 64
_MAGIC = b"vtrt"
_LAYOUT = struct.Struct("<4s12xQ4B4xQ24x")
_CAPABILITY_BITS = dict(enumerate(("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")))


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanHeader:
    """What the header says."""

    version: str
    """Of the library that built the engine, e.g. `1.7.1.116`."""
    capabilities: tuple[str, ...]
    """Compute capabilities in ascending order, e.g. `8.6`."""
    size_bytes: int
    """What the file should have."""


def read_plan_header(path: Path) -> PlanHeader:
    """Read the header; raises `ArtifactError` when the file is no engine of TensorRT for RTX."""
    with path.open("rb") as file:
        data = file.read(HEADER_BYTES)
    if len(data) < HEADER_BYTES or not data.startswith(_MAGIC):
        raise ArtifactError(
            f"{path} is not an engine of TensorRT for RTX: it begins with {data[:4]!r}",
            allowed=f"{HEADER_BYTES} bytes of header that begin with {_MAGIC!r}",
            hint="the file is damaged or something else: export it again",
        )
    _, size_bytes, *version, mask = _LAYOUT.unpack(data)
    capabilities = [
        _CAPABILITY_BITS.get(bit, f"unknown (bit {bit})")
        for bit in range(mask.bit_length())
        if mask >> bit & 1
    ]
    return PlanHeader(
        version=".".join(map(str, version)), capabilities=tuple(capabilities), size_bytes=size_bytes
    )
