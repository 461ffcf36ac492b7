"""The child process that builds one engine: a request on stdin, messages on what was its stdout.

    request   package, onnx_file, engine_file, log_file, capabilities, profile
    replies   phase, step, steps (any number), then `done` with version, layers and peak_bytes, or
              `error` with its parts, or `errno` with the system's text

TensorRT prints as it likes: stdout and stderr are the log that the parent opened as stderr.
"""

import os
import sys
import threading
from pathlib import Path

from tightfit.errors import TightfitError
from tightfit.runtimes.framing import Message, receive, send
from tightfit.runtimes.tensorrt.builder import BuildRequest, build
from tightfit.runtimes.tensorrt.package import Package
from tightfit.runtimes.tensorrt.profile import Profile
from tightfit.runtimes.worker_streams import open_replies

_STATUS = Path("/proc/self/status")


def main() -> None:
    """Build what the request says, and answer."""
    replies = open_replies()
    received = receive(sys.stdin.buffer)
    if received is None:
        return
    threading.Thread(target=_exit_with_stdin, daemon=True).start()

    def progress(phase: str, step: int, steps: int) -> None:
        send(replies, {"phase": phase, "step": step, "steps": steps})

    try:
        result = build(_request(received[0]), progress)
    except TightfitError as error:
        parts = {"problem": error.problem, "allowed": error.allowed, "hint": error.hint}
        send(replies, {"error": parts})
    except OSError as error:
        send(replies, {"errno": error.errno, "text": error.strerror})
    else:
        done = {"version": result.version, "layers": result.layers, "peak_bytes": _peak_bytes()}
        send(replies, {"done": done})


def _peak_bytes() -> int | None:
    """Peak resident memory; getrusage would count the parent's, from before the exec."""
    if not _STATUS.is_file():
        return None
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def _request(message: Message) -> BuildRequest:
    return BuildRequest(
        package=Package(message["package"]),
        onnx_file=Path(message["onnx_file"]),
        engine_file=Path(message["engine_file"]),
        log_file=Path(message["log_file"]),
        capabilities=tuple(message["capabilities"]),
        profile=Profile(**message["profile"]),
    )


def _exit_with_stdin() -> None:
    while receive(sys.stdin.buffer) is not None:
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
