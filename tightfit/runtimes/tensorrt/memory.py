"""Host memory that building an engine takes, and whether this machine has it.

    peak = 0.75 GiB + 2.75 * bytes of the ONNX file's weights

Measured with TensorRT for RTX 1.7.1 and the two profiles (peak resident memory of the child): 161
MiB of weights take 991 MiB, 809 MiB (float16) 2519 MiB, 1534 MiB (1.5B, INT4) 4833 MiB. Several
compute capabilities cost nothing more; with one profile it is 0.55 GiB + 2.4 * weights.
Of it the file itself, mapped, is one part in 2.75, which the system may drop and read again.
"""

import os
from pathlib import Path

from tightfit.errors import DoesNotFitError

GIB = 1 << 30
_BASE_BYTES = 3 * GIB // 4
"""TensorRT's libraries, CUDA's tables, two profiles' kernels."""
_BYTES_PER_WEIGHT_BYTE = 2.75
_CGROUP = Path("/sys/fs/cgroup")
_KIB = 1 << 10


def build_memory_bytes(weights_bytes: int) -> int:
    """Peak host memory of a build from an ONNX file with that many bytes of weights."""
    return _BASE_BYTES + int(_BYTES_PER_WEIGHT_BYTE * weights_bytes)


def available_bytes() -> int | None:
    """Memory that a new process may take, within its container; None where nobody tells."""
    limits = [limit for limit in (_machine_bytes(), _container_bytes()) if limit is not None]
    return min(limits, default=None)


def check_build_memory(weights_bytes: int) -> None:
    """Raise `DoesNotFitError` when a build of that size would not fit into this machine."""
    needed, available = build_memory_bytes(weights_bytes), available_bytes()
    if available is None or needed <= available:
        return
    raise DoesNotFitError(
        f"building this engine takes about {needed / GIB:.1f} GiB of memory, and this machine has "
        f"{available / GIB:.1f} GiB left",
        allowed=f"{weights_bytes / GIB:.2f} GiB of weights take 2.75 times that and 0.75 GiB",
        hint="end other programs; build on a machine with more memory (no GPU is needed); choose "
        "a smaller grid or model, quantize the embedding and the head too; or take --format gguf",
    )


def _machine_bytes() -> int | None:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * _KIB
    if "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _container_bytes() -> int | None:
    """What a memory limit (cgroup v2) leaves; the page cache gives way."""
    limit, current, stat = (_CGROUP / f"memory.{part}" for part in ("max", "current", "stat"))
    if not limit.is_file() or limit.read_text().strip() == "max":
        return None
    cached = dict(line.split() for line in stat.read_text().splitlines())
    used = int(current.read_text()) - int(cached["inactive_file"])
    return max(0, int(limit.read_text()) - used)
