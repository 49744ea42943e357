"""The admin listener's HTTP: read-only pages, the standard library's server, a thread for each client, a few of them.

Its own address only, against pages of strangers that reach it by a name of theirs (DNS rebinding); with a token, which
no stranger's page has, any name. The token is a bearer's (RFC 6750) or the password of Basic (RFC 7617), for browsers.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib import resources
from typing import Any

from pooldrain.admin.collector import Collector
from pooldrain.phases import Phase
from pooldrain.snapshot import ServiceStatus

# Clients at a time; one more is turned away.
MOST_CLIENTS = 64

# Seconds for which a client may keep us waiting.
CLIENT_TIMEOUT = 10.0

# Seconds from one event of `/events` to the next, at most.
HEARTBEAT = 1.0

_TEXT = "text/plain; charset=utf-8"

_INSTALL = "/metrics needs prometheus-client: pip install 'pooldrain[metrics]'\n"


@cache
def page() -> str:
    """The page, but for its nonce."""
    return resources.files("pooldrain.admin").joinpath("page.html").read_text(encoding="utf-8")


class AdminServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves on a bound socket. `names`: the hosts that a client may ask for, empty: any."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, collector: Collector, names: frozenset[str], token: str | None) -> None:
        socketserver.BaseServer.__init__(self, listener.getsockname(), Handler)
        self.socket = listener
        self.collector = collector
        self.names = names
        self.token = token
        self._free = threading.BoundedSemaphore(MOST_CLIENTS)
        listener.listen(MOST_CLIENTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a thread serve a client, if there is one left."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a client."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that has gone is no news to anybody."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: AdminServer
    server_version, sys_version = "pooldrain", ""
    timeout = CLIENT_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Nothing."""

    def address_string(self) -> str:
        """The client's address; one of a Unix socket has none."""
        return ""

    def parse_request(self) -> bool:
        """Read the head; False if it has been answered."""
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            self._text(
                HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD: nothing can be changed here\n", allow="GET, HEAD"
            )
            return False
        if self.server.names and _host_of(self.headers.get("Host", "")) not in self.server.names:
            self._text(HTTPStatus.FORBIDDEN, "this listener answers to its own address only\n")
            return False
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """An error of the standard library's: nothing of the request is repeated."""
        self.request_version = self.protocol_version  # or it would take what it could not read for HTTP/0.9
        self._text(HTTPStatus(code), f"{HTTPStatus(code).phrase}\n")

    def do_HEAD(self) -> None:
        """The same as GET; only the body is left out."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer."""
        path = self.path.partition("?")[0]
        if path == "/livez":
            self._text(HTTPStatus.OK, "alive\n")
        elif path == "/readyz":
            phase = self.server.collector.fresh()["phase"]
            self._text(HTTPStatus.OK if phase == Phase.READY else HTTPStatus.SERVICE_UNAVAILABLE, f"{phase.lower()}\n")
        elif not self._allowed():
            self._text(
                HTTPStatus.UNAUTHORIZED,
                "the token of --admin-token is wanted, as a bearer's or as the password\n",
                www_authenticate='Basic realm="pooldrain", charset="UTF-8"',
            )
        elif (show := PAGES.get(path)) is not None:
            show(self)
        else:
            self._text(HTTPStatus.NOT_FOUND, f"there is only {', '.join(['/livez', '/readyz', *PAGES])}\n")

    def show_status(self) -> None:
        """Everything, as JSON."""
        self._answer(HTTPStatus.OK, "application/json", _json(self.server.collector.fresh()))

    def show_metrics(self) -> None:
        """The numbers, as Prometheus' text."""
        try:
            from pooldrain.admin.exposition import CONTENT_TYPE, exposition
        except ModuleNotFoundError:
            self._text(HTTPStatus.NOT_IMPLEMENTED, _INSTALL)
            return
        self._answer(HTTPStatus.OK, CONTENT_TYPE, exposition(self.server.collector.fresh()))

    def show_page(self) -> None:
        """The live page."""
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        body = page().replace("{{nonce}}", nonce).encode()
        self._answer(HTTPStatus.OK, "text/html; charset=utf-8", body, content_security_policy=policy)

    def show_events(self) -> None:
        """The status, again and again, as server-sent events; the last one is called `last`."""
        self._head(HTTPStatus.OK, "text/event-stream")
        if self.command == "HEAD":
            return
        news, seen, over = self.server.collector.news, -1, False
        with news.reader():
            self.server.collector.fresh()  # it is the newest news then; shown by itself, older news would come after it
            while not over:
                seen, status, over = news.next(seen, HEARTBEAT)
                if status is not None:
                    name = b"event: last\n" if over else b""
                    self.wfile.write(name + b"data: " + _json(status) + b"\n\n")

    def _allowed(self) -> bool:
        if self.server.token is None:
            return True
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        return hmac.compare_digest(given.strip().encode(), self.server.token.encode())

    def _text(self, status: HTTPStatus, text: str, **headers: str) -> None:
        self._answer(status, _TEXT, text.encode(), **headers)

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes, **headers: str) -> None:
        self._head(status, content_type, content_length=str(len(body)), **headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, content_type: str, **headers: str) -> None:
        self.close_connection = True
        self.send_response(status)
        always = {"cache_control": "no-store", "x_content_type_options": "nosniff", "referrer_policy": "no-referrer"}
        for name, value in {"content_type": content_type, **always, **headers, "connection": "close"}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


# What is shown, by path; probes are answered without a token as well.
PAGES: dict[str, Callable[[Handler], None]] = {
    "/": Handler.show_page,
    "/status": Handler.show_status,
    "/metrics": Handler.show_metrics,
    "/events": Handler.show_events,
}


def _json(status: ServiceStatus) -> bytes:
    return json.dumps(status, ensure_ascii=False, separators=(",", ":")).encode()


def _host_of(header: str) -> str:
    """The host of a Host header, without its port and its brackets."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
