"""The HTTP server: keep-alive, HEAD, chunked bodies, faults and the log."""

from __future__ import annotations

import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from . import community, pages, reading, writing
from .faults import Exchange, Faults
from .state import HubError, HubState
from .web import Request, Response, dispatch, error_response

ROUTES = (*reading.ROUTES, *writing.ROUTES, *community.ROUTES, *pages.ROUTES)
_PIECE = 64 * 1024


class DoubleServer(ThreadingHTTPServer):
    """Serves one hub on loopback."""

    daemon_threads = True
    # The default of 5 refuses connections when a test publishes from many threads at once.
    request_queue_size = 128

    def __init__(self, state: HubState, faults: Faults, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.state, self.faults = state, faults
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection and handle it in a thread."""
        with self._open_lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection and close it."""
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Close what is still open: a kept-alive connection would outlive the server."""
        with self._open_lock:
            connections = list(self._open)
        for connection in connections:
            # An error means that the client was faster.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of a download is nothing to report."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def running(state: HubState, faults: Faults, port: int) -> Iterator[int]:
    """Serve until the block ends; yields the port."""
    server = DoubleServer(state, faults, port)
    # A short poll: shutdown() waits for it, and every test shuts a server down.
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.hang_up()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body go out in separate writes: without this each answer waits for an ACK.
    disable_nagle_algorithm = True
    server: DoubleServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet: the hub has its own log."""

    def _answer(self) -> None:
        body = self._read_body()
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        port = int(self.server.server_address[1])
        request = Request(self.command, path, query, headers, body, port)
        exchange = Exchange(self.command, self.path, headers.get("range"), len(body))
        self.server.faults.record(exchange)
        response = self._respond(request)
        exchange.status = response.status
        self._send(response, exchange)

    # The names that http.server looks up.
    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

    def _respond(self, request: Request) -> Response:
        failure = self.server.faults.failure(request.target)
        if failure is not None:
            return error_response(failure.error())
        try:
            return dispatch(ROUTES, self.server.state, request)
        except Exception as error:
            traceback.print_exc()
            return error_response(HubError(500, f"The double has a bug: {error!r}"))

    def _send(self, response: Response, exchange: Exchange) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        length = len(response.body) if response.length is None else response.length
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(response.body, exchange)

    def _send_body(self, body: bytes, exchange: Exchange) -> None:
        kept = self.server.faults.cut(self.path, len(body)) if body else 0
        view = memoryview(body)[:kept]
        for start in range(0, kept, _PIECE):
            piece = view[start : start + _PIECE]
            # Counted first: the client may have the last byte before write() returns.
            exchange.sent += len(piece)
            try:
                self.wfile.write(piece)
            except OSError:
                exchange.sent -= len(piece)
                raise
        if kept < len(body):
            self.close_connection = True

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self._chunks())
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # Trailers.
