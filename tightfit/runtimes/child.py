"""A child process that answers messages, and never outlives or hangs its parent.

The child runs a module of ours with `-m`; its stdin and stdout carry the messages of `framing`, and
its stderr goes to a temporary file whose text explains a failure. It is killed by `stop`, when the
object is collected, and when the interpreter exits; a parent that is killed closes the child's
stdin, which ends it too.
"""

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from typing import IO

from tightfit.runtimes.framing import Message, receive, send

QUEUED_REPLIES = 2
"""Replies read ahead; one may hold 64 MiB of logits."""
EXIT_WAIT_S = 10.0
"""How long a killed child may take to disappear."""
READER_POLL_S = 0.05
"""How often stopping looks whether the reading thread has seen the end of the stream."""

Reply = tuple[Message, bytes]
_Replies = queue.Queue[Reply | None]


class ChildProcess:
    """One running child."""

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        """Start `python -m module`; `environment` gives way to the user's own variables."""
        log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed by _stop
        self._log = log.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**environment, **os.environ},
            # Ctrl-C must reach only the parent, which then ends the child.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._replies: _Replies = queue.Queue(QUEUED_REPLIES)
        reader = threading.Thread(
            target=_read_replies, args=(self._process.stdout, self._replies), daemon=True
        )
        reader.start()
        self._stop = weakref.finalize(self, _stop, self._process, log, self._replies, reader)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether `stop` was not called yet; the child may have died."""
        return self._stop.alive

    def send(self, message: Message) -> None:
        """Send a request. A dead child is not an error here: `receive` tells it."""
        with contextlib.suppress(BrokenPipeError):
            send(self._stdin, message)

    def receive(self, timeout_s: float) -> Reply | None:
        """The next reply; None when the child has ended. Raises `TimeoutError`."""
        try:
            return self._replies.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None

    def log_text(self) -> str:
        """What the child has written to its stderr so far."""
        # Not seek and read: the child writes at the same file offset.
        return os.pread(self._log, os.fstat(self._log).st_size, 0).decode(errors="replace")

    def exit_description(self) -> str:
        """How a child ended by itself, such as `signal 6`."""
        status = self._process.wait(EXIT_WAIT_S)
        return f"signal {-status}" if status < 0 else f"status {status}"

    def stop(self) -> None:
        """Kill the child and forget its log."""
        self._stop()


def _read_replies(stream: IO[bytes], replies: _Replies) -> None:
    with stream:
        while (reply := receive(stream)) is not None:
            replies.put(reply)
    replies.put(None)


def _stop(
    process: "subprocess.Popen[bytes]", log: IO[bytes], replies: _Replies, reader: threading.Thread
) -> None:
    """Kill the child, reap it, and release the reading thread, which may wait for room."""
    process.kill()
    process.wait(EXIT_WAIT_S)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # a request was still buffered; nobody reads it
        process.stdin.close()
    while reader.is_alive():
        with contextlib.suppress(queue.Empty):
            replies.get(timeout=READER_POLL_S)
    log.close()
