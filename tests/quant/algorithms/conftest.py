"""Makes the benchmark's synthetic layer importable: the tests assert what the benchmark prints."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
