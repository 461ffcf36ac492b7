"""What parent and child processes say to each other: a JSON object a line, sometimes with bytes.

A message whose object has a `bytes` entry is followed by exactly that many raw bytes (logits as
float32 in native order): JSON would be twenty times larger and slower.
"""

import json
from typing import IO, Any

Message = dict[str, Any]
"""A decoded line; each worker's docstring names the keys."""


def send(stream: IO[bytes], message: Message, payload: bytes | memoryview = b"") -> None:
    """Write one message and flush."""
    if payload:
        message = {**message, "bytes": len(payload)}
    stream.write(json.dumps(message).encode() + b"\n")
    if payload:
        stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[Message, bytes] | None:
    """Read one message and its payload; None at the end of the stream, even within a message."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    message: Message = json.loads(line)
    expected_bytes = message.pop("bytes", 0)
    payload = stream.read(expected_bytes) if expected_bytes else b""
    return (message, payload) if len(payload) == expected_bytes else None
