"""A publication that is killed in the middle: another process, files of the size that counts.

Files of 10 MiB and more are sent one by one, so that a rerun finds what was sent.
"""

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub_client import hub_environment, use_hub
from support.hub_routes import SIGNATURE
from support.hub_server import TOKEN, serve_hub
from support.hub_state import Hub
from support.publishable import REPO, publishable

from tightfit.cli.main import run
from tightfit.export.manifest import read_manifest
from tightfit.publish.hub import LARGE_BYTES

FILE_BYTES = LARGE_BYTES + 1
ENDED_S = 30  # what a publication of 30 MB may take on a busy machine


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


@pytest.fixture
def out(tmp_path: Path) -> Path:
    publishable(tmp_path / "out", ("compressed-tensors",), file_bytes=FILE_BYTES)
    return tmp_path / "out"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_the_rest_is_sent_by_the_rerun(
    hub: Hub,
    out: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    status: int,
) -> None:
    words = ["publish", str(out), "--repo", REPO]
    with subprocess.Popen(
        [sys.executable, "-m", "tightfit", *words],
        env=hub_environment(hub, tmp_path / "home", TOKEN),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        # The second file arrives, and has no answer.
        end = functools.partial(os.kill, process.pid, number)
        hub.fail(route="lfs-put", skip=1, call=end, delay_s=ENDED_S)
        shown, told = process.communicate(timeout=ENDED_S)
    assert (process.returncode, shown) == (status, "")
    (repo,) = hub.repos.values()
    assert set(repo.head().files) == {".gitattributes"}
    sent = set(repo.objects)
    assert len(sent) == 1
    if number == signal.SIGTERM:
        assert f"no file in {REPO} was changed, and what was uploaded is not sent again" in told

    hub.heal()
    hub.forget()
    use_hub(monkeypatch, hub, tmp_path / "home", TOKEN)
    assert run(words) == 0
    sent_now = {request.path.rsplit("/", 1)[1] for request in hub.asked("lfs-put")}
    assert len(sent_now) == 2
    assert not sent & sent_now
    _, commit = repo.commits
    names = {record.name for record in read_manifest(out).files}
    assert {name: commit.bytes_of(name) for name in names} == {
        name: (out / name).read_bytes() for name in names
    }
    # No token in what was said, and in no file, here or there.
    again = capsys.readouterr()
    for text in (told, again.out, again.err):
        assert not any(secret in text for secret in (TOKEN, SIGNATURE))
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    published = [file.content for file in commit.files.values()]
    assert not any(TOKEN.encode() in content for content in [*files, *published])
