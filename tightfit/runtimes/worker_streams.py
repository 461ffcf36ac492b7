"""A child's side of `child`: where it answers, and that it never outlives its parent."""

import os
import sys
import threading
import time
from typing import IO

PARENT_CHECK_S = 1.0
"""How long an orphan may live: a C library computes for minutes without looking at stdin."""


def open_replies() -> IO[bytes]:
    """The stream of replies, on what was stdout; from now on stdout is the log, like stderr.

    Also starts to watch for the parent's end.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    return replies


def _exit_with_parent(parent: int) -> None:
    """A process forked by the parent may keep our stdin open after the parent's death."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(0)
