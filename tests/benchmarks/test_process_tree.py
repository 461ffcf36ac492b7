"""Costs of commands that take a known amount of memory, time and disk."""

import sys
from pathlib import Path

import pytest

from benchmarks.process_tree import disk_bytes, measure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MB = 1_000_000
HOLD = "import time; held = bytearray(b'x') * {size}; time.sleep(0.5)"
SLACK_BYTES = 30 * MB
"""Two bare interpreters."""


def cost_of(script: str, tmp_path: Path, watched: Path | None = None):
    command = [sys.executable, "-c", script]
    return measure(command, log=tmp_path / "log", watched=watched or tmp_path / "none")


def test_memory_of_parent_and_child_adds_up(tmp_path: Path) -> None:
    child = HOLD.format(size=60 * MB)
    cost = cost_of(
        # The child first: what is forked looks like its parent for a moment.
        f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"held = bytearray(b'x') * {100 * MB}; child.wait()",
        tmp_path,
    )
    assert 100 * MB < cost.process_bytes < 100 * MB + SLACK_BYTES
    assert 160 * MB < cost.tree_bytes < 160 * MB + SLACK_BYTES
    assert cost.tree_rss_bytes >= cost.tree_bytes
    assert cost.high_water_bytes >= cost.process_bytes
    assert cost.wall_s > 0.5
    assert cost.cpu_s < cost.wall_s


def test_mapped_files_are_no_memory(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(80 * MB))
    cost = cost_of(
        "import mmap, time\n"
        f"f = open({str(big)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n"
        "n = sum(m[at] for at in range(0, len(m), 4096)); time.sleep(0.5)",
        tmp_path,
    )
    assert cost.tree_bytes < SLACK_BYTES
    assert cost.tree_rss_bytes > 80 * MB
    assert cost.high_water_bytes > 80 * MB


def test_disk_of_a_folder_that_is_gone_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    cost = cost_of(
        "import pathlib, shutil, time\n"
        f"p = pathlib.Path({str(folder)!r}); (p / 'a').mkdir(parents=True)\n"
        f"(p / 'a' / 'b').write_bytes(bytes({5 * MB})); time.sleep(1.2); shutil.rmtree(p)",
        tmp_path,
        watched=folder,
    )
    assert not folder.exists()
    assert 5 * MB <= cost.disk_bytes < 6 * MB
    assert disk_bytes(folder) == 0


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exit status 3[^$]*no luck"):
        cost_of("import sys; print('no luck'); sys.exit(3)", tmp_path)
