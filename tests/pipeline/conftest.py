"""Small exports that finish in a second or two."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoints import make_checkpoint

from tightfit.calib.calibration import CalibrationOptions
from tightfit.pipeline.requests import ExportRequest

SMALL = CalibrationOptions(samples=6, max_tokens=64)


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("qwen2") / "model", "qwen2")


@pytest.fixture
def request_for(qwen2: Path, tmp_path: Path) -> Callable[..., ExportRequest]:
    """An export of the small Qwen2 into `tmp_path / "out"`, changed as the test says."""

    def build(**changes: object) -> ExportRequest:
        values: dict[str, object] = {
            "model": str(qwen2),
            "target": "rtx3060-8gb",
            "output": tmp_path / "out",
            "scheme": "q4_0",
            "calibration": SMALL,
        }
        return ExportRequest(**values | changes)

    return build
