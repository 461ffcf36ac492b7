"""`tightfit drift`: the shipped files in their runtimes against the unquantized checkpoint."""

from tightfit.pipeline.drift.request import DriftRequest, ProtocolChoice
from tightfit.pipeline.drift.run import DriftResult, KeptBaseline, make_baseline, run_drift

__all__ = [
    "DriftRequest",
    "DriftResult",
    "KeptBaseline",
    "ProtocolChoice",
    "make_baseline",
    "run_drift",
]
