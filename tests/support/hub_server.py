"""A loopback Hugging Face Hub that can be written to: the real client publishes to it.

    with serve_hub() as hub:
        hub.fail(route="lfs-put", status=503, times=2)
        ...
        assert hub.repos["someone/name"].head().bytes_of("README.md")

The routes are those of `ROUTES`. Large files lie at a second address, as on the Hub,
where no token may be sent. The state is in `hub_state`, pointing a client here in `hub_client`.
"""

import json
import re
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

from support import hub_reading, hub_uploads, hub_writing
from support.hub_routes import Answer, Asked, RefusedError, Route
from support.hub_state import Failure, Hub, Request, User

ROUTES = (*hub_reading.ROUTES, *hub_uploads.ROUTES, *hub_writing.ROUTES)

TOKEN = "hf_" + "Loopback7" * 4
"""Of the user `someone`, who may write."""
READ_TOKEN = "hf_" + "Readonly7" * 4
OTHER_TOKEN = "hf_" + "Stranger7" * 4

POLL_S = 0.02  # how long stopping the server may take
IDLE_S = 30  # a connection that says nothing is closed
BLOCK_BYTES = 1 << 16


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a Hub on free ports of the loopback interface."""
    users = {
        TOKEN: User(name="someone", organizations=("some-lab",)),
        READ_TOKEN: User(name="someone", role="read"),
        OTHER_TOKEN: User(name="stranger"),
    }
    hub = Hub(url="", storage_url="", users=users)
    servers = [_server(hub, is_storage=is_storage) for is_storage in (False, True)]
    hub.url, hub.storage_url = (f"http://127.0.0.1:{s.server_address[1]}" for s in servers)
    threads = [
        threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
        for server in servers
    ]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


def _find_route(method: str, path: str, *, is_storage: bool) -> tuple[Route | None, dict[str, str]]:
    """The route of this address, and the named parts of the address."""
    for route in ROUTES:
        if (route.method, route.is_storage) == (method, is_storage):
            found = re.fullmatch(route.pattern, path)
            if found:
                parts = found.groupdict().items()
                return route, {name: unquote(part or "") for name, part in parts}
    return None, {}


class BrokenError(Exception):
    """The connection was reset, on purpose or by the client."""


def _server(hub: Hub, *, is_storage: bool) -> ThreadingHTTPServer:
    class Bound(_Handler):
        pass

    Bound.hub = hub
    Bound.is_storage = is_storage
    return ThreadingHTTPServer(("127.0.0.1", 0), Bound)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    disable_nagle_algorithm = True  # a body behind its head would wait 40 ms
    hub: Hub
    is_storage: bool

    def do_GET(self) -> None:
        # A client that goes away in the middle is what some tests are about.
        with suppress(BrokenError, ConnectionError, TimeoutError):
            self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *args: object) -> None:
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        route, names = _find_route(self.command, url.path, is_storage=self.is_storage)
        sent = self.headers.get("Authorization")
        request = Request(
            method=self.command,
            route=route.name if route else "",
            path=url.path,
            token=sent.removeprefix("Bearer ") if sent else None,
            is_storage=self.is_storage,
            user_agent=self.headers.get("User-Agent", ""),
        )
        with self.hub.lock:
            self.hub.requests.append(request)
            rule = next((rule for rule in self.hub.failures if rule.applies(request)), None)
        self._receive(request, rule)
        if rule and rule.status is not None:
            return self._send(request, _failed(rule))
        if route is None:
            # Not 404, which means something: the server lacks this.
            message = f"the loopback Hub has no {self.command} {url.path}"
            return self._send(request, RefusedError(HTTPStatus.NOT_IMPLEMENTED, message).answer)
        asked = Asked(hub=self.hub, request=request, names=names, query=dict(parse_qsl(url.query)))
        try:
            with self.hub.lock:
                answer = route.answer(asked)
        except RefusedError as refusal:
            answer = refusal.answer
        if rule and rule.lost:
            self._reset()
        return self._send(request, answer, break_at=rule and rule.break_answer_at_bytes)

    def _receive(self, request: Request, rule: Failure | None) -> None:
        """Read the body, as far as the failure lets it."""
        if rule and rule.call:
            rule.call()
        if rule and rule.delay_s:
            self.hub.closing.wait(rule.delay_s)
        break_at = rule.break_upload_at_bytes if rule else None
        body = bytearray()
        for block in self._blocks():
            body += block
            if break_at is not None and len(body) >= break_at:
                break
        request.body = bytes(body)
        if break_at is not None:
            self._reset()

    def _blocks(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", "0"))
        while left:
            block = self.rfile.read1(min(left, BLOCK_BYTES))  # type: ignore[attr-defined]
            if not block:
                raise BrokenError
            left -= len(block)
            yield block

    def _send(self, request: Request, answer: Answer, *, break_at: int | None = None) -> None:
        status, headers, body = answer.status, dict(answer.headers), answer.body
        wanted = self.headers.get("Range")
        if answer.is_file and wanted:
            status, headers, body = _part(wanted, headers, body)
        request.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if break_at is None else body[:break_at])
        if break_at is not None:
            self.wfile.flush()
            self._close(reset=False)
            request.status = None

    def _reset(self) -> None:
        """The client gets a reset connection (RST) in place of an answer."""
        self._close(reset=True)
        raise BrokenError

    def _close(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            linger = struct.pack("ii", 1, 0)  # on, for 0 s
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            # The connection closes with the last file of it.
            self.rfile.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)


def _failed(rule: Failure) -> Answer:
    assert rule.status is not None
    body = json.dumps({"error": rule.message}).encode() if rule.message else b""
    headers = {"Content-Type": "application/json", **rule.headers}
    return Answer(status=rule.status, headers=headers, body=body)


def _part(
    wanted: str, headers: Mapping[str, str], body: bytes
) -> tuple[int, dict[str, str], bytes]:
    """The answer to a `Range` header of one range."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
    assert found, f"Range: {wanted}"
    total = len(body)
    first, last = found[1], found[2]
    start = int(first) if first else max(total - int(last), 0)
    end = min(int(last), total - 1) if first and last else total - 1
    if start > end:
        refused = {"Content-Range": f"bytes */{total}"}
        return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, refused, b""
    found_range = {"Content-Range": f"bytes {start}-{end}/{total}"}
    return HTTPStatus.PARTIAL_CONTENT, {**headers, **found_range}, body[start : end + 1]
