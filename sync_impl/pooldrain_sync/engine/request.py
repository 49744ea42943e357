"""Requests as they come over a connection: what llhttp (by `httptools`) makes of the bytes, and their WSGI side."""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

from pooldrain.errors import InvalidRequest
from pooldrain.gate import Reservation
from pooldrain.in_flight import InFlightRequest
from pooldrain.proxies import TrustedProxies
from pooldrain.request_head import Limits, check_head

DEFAULT_LIMITS = Limits()

# Bytes of a body that are kept while it comes. Of a longer one the rest is read by the thread that serves it.
BODY_KEPT = 1 << 20


class Request:
    """One request, as far as it has come."""

    # Defaults live in the class: a request is made for every answer, and few of them change.
    method = ""
    path = ""  # as WSGI has it: decoded, its bytes as Latin-1
    query = b""
    version = "1.1"
    keep_alive = False
    has_head = False
    complete = False
    has_body = False
    expects = False  # its client waits for "100 Continue"
    kept = 0  # bytes of its body that have come
    reservation: Reservation | None = None
    admitted: InFlightRequest | None = None  # before its body had come

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: deque[bytes] = deque()

    def keep(self, body: bytes) -> None:
        """A part of its body has come."""
        self.body.append(body)
        self.kept += len(body)

    @property
    def input(self) -> Any:
        """Its body, once it is complete, as a file."""
        body = self.body
        return io.BytesIO(body[0] if len(body) == 1 else b"".join(body))

    def header(self, name: bytes) -> str | None:
        """The first header of that name, which is given in lower case."""
        for each, value in self.headers:
            if each.lower() == name:
                return value.decode("latin-1")
        return None

    def values(self, name: str) -> list[str]:
        """All headers of that name, which is given in lower case."""
        wanted = name.encode("latin-1")
        return [value.decode("latin-1") for each, value in self.headers if each.lower() == wanted]


class RequestParser:
    """Reads the requests of one connection, one after the other, into `requests`.

    Raises InvalidRequest, whose argument is the answer's status if that is not 400.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, make: Callable[[], Request] = Request) -> None:
        """`make` makes each of the requests."""
        self.requests: deque[Request] = deque()
        self._limits = limits
        self._make = make
        self._current: Request | None = None
        self._head = 0  # bytes of the current head, roughly
        self._body = 0  # and of the current body
        self._parser: Any = httptools.HttpRequestParser(self)

    def close(self) -> None:
        """The parser and this know each other, and would wait for the garbage collector."""
        self._parser = None

    @property
    def in_head(self) -> bool:
        """Whether a part of a head has come."""
        return self._current is not None and not self._current.has_head

    @property
    def between_requests(self) -> bool:
        """Whether all that has come belongs to whole requests."""
        return self._current is None

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        if self._current is None or not self._current.has_head:
            self._head += len(data)
        parser = self._parser
        if parser is None:  # closed by another thread
            return
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # We speak nothing else: the request is served as it is, and so is what follows.
            self._parser = httptools.HttpRequestParser(self)
            rest = data[upgrade.args[0] :]
            if rest:
                self.feed(rest)
            return
        except httptools.HttpParserError as error:
            cause = error.__context__
            raise cause if isinstance(cause, InvalidRequest) else InvalidRequest(str(error)) from error
        current = self._current
        if current is not None and not current.has_head and self._head > self._limits.head:
            raise self._limits.head_too_long(in_target=not current.headers)

    # --- what httptools calls ---------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._current = self._make()

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        assert self._current is not None
        self._current.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; one behind the body is dropped."""
        current = self._current
        assert current is not None
        if not current.has_head:
            current.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head is complete."""
        current, parser = self._current, self._parser
        assert current is not None
        current.method = parser.get_method().decode("ascii")
        current.version = parser.get_http_version()
        current.keep_alive = parser.should_keep_alive()
        target, current.has_body, current.expects = check_head(
            current.method, current.version, current.target, current.headers, self._limits
        )
        path, _, current.query = target.partition(b"?")
        current.path = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
        current.has_head = True
        self._head = self._body = 0
        self.requests.append(current)

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        current = self._current
        assert current is not None
        self._body += len(body)
        self._limits.check_body(self._body)
        current.keep(body)

    def on_message_complete(self) -> None:
        """All of it is there."""
        assert self._current is not None
        self._current.complete = True
        self._current = None


class StreamedBody(io.RawIOBase):
    """A body that is still coming, for the thread that serves its request. `more` waits for more of it."""

    def __init__(self, request: Request, more: Callable[[], None]) -> None:
        self._request = request
        self._more = more

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read what is there, or wait for it; raises what `more` raises."""
        request = self._request
        while not request.body:
            if request.complete:
                return 0
            self._more()
        part = request.body.popleft()
        size = min(len(part), len(buffer))
        buffer[:size] = part[:size]
        request.kept -= size
        if size < len(part):
            request.body.appendleft(part[size:])
        return size


_names: dict[bytes, str | None] = {}  # of headers, as WSGI has them; None for those that are dropped
_NAMES_KEPT = 1000


def _environ_name(name: bytes) -> str | None:
    if b"_" in name:  # it would be taken for another header, one that a proxy has set
        return None
    upper = name.decode("latin-1").upper().replace("-", "_")
    key = upper if upper in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + upper
    if len(_names) < _NAMES_KEPT:
        _names[name] = key
    return key


def at(address: tuple[str, int]) -> dict[str, Any]:
    """What the WSGI environment says of the address that a request came to."""
    return {"SERVER_NAME": address[0], "SERVER_PORT": str(address[1])}


def base_environ(address: tuple[str, int], software: str, root_path: str = "") -> dict[str, Any]:
    """What is the same for all requests to an address (see `at`)."""
    return {
        "SCRIPT_NAME": root_path,
        **at(address),
        "SERVER_SOFTWARE": software,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }


def environ_of(
    base: dict[str, Any], request: Request, peer: tuple[str, int], proxies: TrustedProxies | None
) -> dict[str, Any]:
    """The WSGI environment of a request (PEP 3333). `proxies`: whose word on it is taken."""
    environ = base.copy()
    environ["REQUEST_METHOD"] = request.method
    environ["PATH_INFO"] = request.path
    environ["QUERY_STRING"] = request.query.decode("latin-1")
    environ["RAW_URI"] = environ["REQUEST_URI"] = request.target.decode("latin-1")
    environ["SERVER_PROTOCOL"] = "HTTP/" + request.version
    environ["REMOTE_ADDR"] = peer[0]
    environ["REMOTE_PORT"] = str(peer[1])
    names = _names
    for name, raw in request.headers:
        key = names.get(name) or _environ_name(name)
        if key is None:
            continue
        value = raw.decode("latin-1")
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    if request.complete and environ.pop("HTTP_TRANSFER_ENCODING", None) is not None:
        environ["CONTENT_LENGTH"] = str(request.kept)  # its chunks are put together
    if proxies is not None:
        _believe(proxies, request, peer[0], environ)
    return environ


def client_address(request: Request, peer: str, proxies: TrustedProxies | None) -> str:
    """Who has sent a request, as trusted proxies say."""
    told = None if proxies is None else proxies.forwarded(peer, request.values).client
    return peer if told is None else told[0]


def _believe(proxies: TrustedProxies, request: Request, peer: str, environ: dict[str, Any]) -> None:
    """What a trusted proxy has said of a request takes the place of what its connection says."""
    told = proxies.forwarded(peer, request.values)
    if told.client is not None:
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = told.client[0], str(told.client[1])
    if told.scheme is not None:
        environ["wsgi.url_scheme"] = told.scheme
    if told.host is not None:
        environ["HTTP_HOST"] = told.host
    if told.prefix is not None:
        environ["SCRIPT_NAME"] = told.prefix
