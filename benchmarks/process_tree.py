"""What a command costs: time, memory of all its processes, and disk of a folder while it runs.

Linux only. The command leads a session of its own, so all that it starts is found by the session's
number, also after a parent in between has ended. Memory is `RssAnon + RssShmem` of
/proc/PID/status: what the system cannot drop, which mapped files are not. Both are polled, so a
peak that comes and goes between two looks is missed; `high_water_bytes` is the kernel's own maximum
(VmHWM), which misses nothing and counts mapped files. Shared memory that two processes map counts
twice.
"""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05
DISK_EVERY = 10
"""Polls from one walk through the folder to the next."""
_PROC = Path("/proc")
_SESSION_FIELD = 3
"""Of /proc/PID/stat, counted after the name in parentheses: state, parent, group, session."""
_KIB = 1024
_STAT_BLOCK_BYTES = 512
"""Of st_blocks, whatever the file system's own."""
_SHOWN_CHARS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one run of a command."""

    wall_s: float
    cpu_s: float
    """User and system, of all processes that were waited for."""
    process_bytes: int
    """Largest memory of one process."""
    tree_bytes: int
    """Largest memory of all processes at once."""
    tree_rss_bytes: int
    """The same with mapped files."""
    high_water_bytes: int
    """Largest VmHWM of one process."""
    disk_bytes: int
    """Largest size of the watched folder."""


@dataclass(slots=True)
class _Peaks:
    process_bytes: int = 0
    tree_bytes: int = 0
    tree_rss_bytes: int = 0
    high_water_bytes: int = 0
    disk_bytes: int = 0

    def look(self, session: int) -> None:
        processes = list(_session_memory(session))
        held = [anonymous + shared for anonymous, shared, _, _ in processes]
        self.process_bytes = max([self.process_bytes, *held])
        self.tree_bytes = max(self.tree_bytes, sum(held))
        self.tree_rss_bytes = max(self.tree_rss_bytes, sum(rss for _, _, rss, _ in processes))
        self.high_water_bytes = max([self.high_water_bytes, *(high for *_, high in processes)])


def measure(command: Sequence[str], *, log: Path, watched: Path) -> Cost:
    """Run a command to its end; raises `RuntimeError` with its last words when it fails.

    Its output goes to `log`; `watched` is a folder that may come and go.
    """
    peaks = _Peaks()
    start = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
        try:
            status, usage = _poll(process.pid, watched, peaks)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    # wait4 has reaped the child: Popen is told, or it would look for it.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")[-_SHOWN_CHARS:]
        raise RuntimeError(f"exit status {process.returncode}: {' '.join(command)}\n{said}")
    return Cost(
        wall_s=time.perf_counter() - start,
        cpu_s=usage.ru_utime + usage.ru_stime,
        process_bytes=peaks.process_bytes,
        tree_bytes=peaks.tree_bytes,
        tree_rss_bytes=peaks.tree_rss_bytes,
        high_water_bytes=peaks.high_water_bytes,
        disk_bytes=peaks.disk_bytes,
    )


def _poll(pid: int, watched: Path, peaks: _Peaks) -> tuple[int, resource.struct_rusage]:
    polls = 0
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return status, usage
        peaks.look(pid)
        if polls % DISK_EVERY == 0:
            peaks.disk_bytes = max(peaks.disk_bytes, disk_bytes(watched))
        polls += 1
        time.sleep(POLL_S)


def disk_bytes(folder: Path) -> int:
    """Blocks that the files of a folder take; 0 when it is not there."""
    total = 0
    for path, _, files in os.walk(folder):
        for file in files:
            try:
                total += (Path(path) / file).lstat().st_blocks * _STAT_BLOCK_BYTES
            except FileNotFoundError:  # renamed or removed since it was listed
                continue
    return total


def _session_memory(session: int) -> Iterator[tuple[int, int, int, int]]:
    """RssAnon, RssShmem, VmRSS and VmHWM of every process of a session, in bytes."""
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[_SESSION_FIELD]) != session:
                continue
            status = (folder / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it ended since it was listed
            continue
        values = dict(line.split(":", 1) for line in status.splitlines())
        if "VmRSS" in values:  # a process that has ended has no memory left
            names = ("RssAnon", "RssShmem", "VmRSS", "VmHWM")
            anonymous, shared, rss, high = (int(values[n].split()[0]) * _KIB for n in names)
            yield anonymous, shared, rss, high
