"""Requests under way that another thread can break off.

A completion may take half an hour, during which its thread waits for the server's first byte. To
end such threads at once (an interruption, another request that failed), their sockets are shut
down, which a server takes as a client that went away: vLLM, SGLang and llama.cpp then stop
computing for it.
"""

import http.client
import socket
import ssl
import threading
import urllib.request
from functools import partial
from typing import Any, Final

CONNECT_TIMEOUT_S: Final = 20.0
"""Longest wait for a connection, TLS included. A server answers late, but connects at once."""


class CancelledError(Exception):
    """The flight was broken off."""


class Flight:
    """A group of requests; `cancel` ends them all."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        # urllib finds the proxies of the environment by itself.
        self.opener = urllib.request.build_opener(
            _PlainHandler(self), _SecureHandler(self), _NoRedirect()
        )

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End all requests, now and to come: each raises in its own thread."""
        self._cancelled.set()
        with self._lock:
            for each in self._sockets:
                _shut_down(each)

    def pause(self, seconds: float) -> None:
        """Wait, unless the flight is broken off."""
        self._cancelled.wait(seconds)

    def board(self, connected: socket.socket) -> None:
        """Take in a socket; raises `CancelledError` where it comes too late."""
        with self._lock:
            # What the server has answered is closed and no longer needed.
            self._sockets = {each for each in self._sockets if each.fileno() >= 0}
            self._sockets.add(connected)
        if self.cancelled:
            raise CancelledError


def _shut_down(each: socket.socket) -> None:
    try:
        # Not SSLSocket.shutdown: it drops the TLS state under the hands of the reading thread.
        socket.socket.shutdown(each, socket.SHUT_RDWR)
    except OSError:
        return  # the other end was faster


class _FlightConnection(http.client.HTTPConnection):
    def __init__(self, *args: Any, flight: Flight, **options: Any) -> None:
        super().__init__(*args, **options)
        self._flight = flight

    def connect(self) -> None:
        answer_timeout_s, self.timeout = self.timeout, CONNECT_TIMEOUT_S
        super().connect()
        self.sock.settimeout(answer_timeout_s)
        self._flight.board(self.sock)


class _SecureFlightConnection(_FlightConnection, http.client.HTTPSConnection):
    """`connect` of the flight, then that of TLS."""


class _PlainHandler(urllib.request.HTTPHandler):
    def __init__(self, flight: Flight) -> None:
        super().__init__()
        self._flight = flight

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_FlightConnection, flight=self._flight), request)


class _SecureHandler(urllib.request.HTTPSHandler):
    def __init__(self, flight: Flight) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(context=self._tls)
        self._flight = flight

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        connection = partial(_SecureFlightConnection, flight=self._flight)
        return self.do_open(connection, request, context=self._tls)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host, and turn a POST into a GET."""

    def redirect_request(self, *_arguments: Any, **_options: Any) -> None:
        return None
