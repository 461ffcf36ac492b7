"""Unit costs of what one CPU thread does for every weight of a model, measured.

    python -m benchmarks.r1_units

writes `docs/r1_units.json`; `benchmarks.r1_cost` reads it. CPU seconds on matrices of R1's experts,
the best of several rounds.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType

from benchmarks.documents import DOCS
from tightfit.calib.float8_blocks import dequantize
from tightfit.export.manifest import values_sha256
from tightfit.quant.algorithms.rtn import rtn
from tightfit.quant.registry import get_grid

UNITS = DOCS / "r1_units.json"
ROWS, COLUMNS = 2048, 7168
GRID = "Q4_K"
BLOCK = 128
ROUNDS = 5
BILLION = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Units:
    """CPU seconds."""

    load_s_per_billion: float
    """FP8 weights to float32, and the check that they are finite."""
    prove_s_per_billion: float
    """Reading a GGUF back: both readers, the hashes of their values."""
    sha256_s_per_gb: float
    """Of a file."""


def measure_units() -> Units:
    """Measure, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    w_OI = torch.randn(ROWS, COLUMNS, generator=generator)
    codes_OI = w_OI.to(torch.float8_e4m3fn)
    scale = torch.ones(ROWS // BLOCK, COLUMNS // BLOCK)
    grid = get_grid(GRID)
    packed = grid.pack(rtn(w_OI, grid))
    kind = GGMLQuantizationType[GRID]

    def prove() -> None:
        ours = values_sha256([grid.dequantize(grid.unpack(packed, (ROWS, COLUMNS))).numpy()])
        assert values_sha256([gguf.quants.dequantize(packed.numpy(), kind)]) == ours

    data = w_OI.numpy().data
    units = Units(
        load_s_per_billion=_best(
            lambda: dequantize(codes_OI, scale, (BLOCK, BLOCK)).isfinite().all()
        )
        * BILLION
        / w_OI.numel(),
        prove_s_per_billion=_best(prove) * BILLION / w_OI.numel(),
        sha256_s_per_gb=_best(lambda: hashlib.sha256(data).digest()) * BILLION / data.nbytes,
    )
    torch.set_num_threads(before)
    return units


def read_units(path: Path = UNITS) -> Units:
    """What was measured."""
    return Units(**json.loads(path.read_text(encoding="utf-8")))


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Measure and write."""
    units = {name: round(value, 2) for name, value in asdict(measure_units()).items()}
    UNITS.write_text(json.dumps(units, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
