"""A family that can be planned for and not yet exported is refused before any work."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.deepseek_v3 import make_deepseek_v3

import tightfit.calib.locate
from tightfit.errors import CheckpointError
from tightfit.pipeline.export import run_export
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter

Build = Callable[..., ExportRequest]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_local_deepseek_v3(request_for: Build, tmp_path: Path, dry_run: bool) -> None:
    request = request_for(model=str(make_deepseek_v3(tmp_path / "model")), dry_run=dry_run)
    with pytest.raises(CheckpointError, match="cannot read or export its weights yet"):
        run_export(request, SilentReporter())
    assert not request.output.exists()


@pytest.mark.parametrize("scheme", ["q4_k_m", "auto"])
def test_r1_is_not_downloaded(
    request_for: Build, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(
        tightfit.calib.locate, "download_snapshot", lambda *_: pytest.fail("downloads")
    )
    request = request_for(model="r1", target="a100x8-80gb", scheme=scheme)
    with pytest.raises(CheckpointError, match="plans for deepseek_v3, and cannot") as caught:
        run_export(request, SilentReporter())
    assert "tightfit plan" in str(caught.value.hint)
    assert not request.output.exists()
