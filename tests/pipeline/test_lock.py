"""One export at a time in a folder."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from tightfit.errors import ArtifactError
from tightfit.pipeline.export import run_export
from tightfit.pipeline.job import FOLDER
from tightfit.pipeline.requests import ExportRequest
from tightfit.reporter import SilentReporter


def test_a_second_export_into_the_folder_is_refused(
    request_for: Callable[..., ExportRequest], tmp_path: Path
) -> None:
    folder = tmp_path / "out" / FOLDER
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="another export is at work"):
            run_export(request_for(), SilentReporter())
    assert [file.name for file in (tmp_path / "out").iterdir()] == [FOLDER]
