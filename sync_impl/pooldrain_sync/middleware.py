"""The request gate as WSGI middleware (PEP 3333).

A request is in flight from here until the server calls `close()` on the response, sent or broken off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pooldrain.gate import CLOSE_CONNECTION, CURRENT_REQUEST, CURRENT_RESERVATION, UNCOUNTED_PATHS, InFlightRequest
from pooldrain.status import CUT, REFUSED, Answer
from pooldrain_sync.runner import Runner

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Bytes that a server hands to the kernel in one go; a longer rest may take its client a while.
ONE_WRITE = 65536


class GateMiddleware:
    """Admits requests to `app`, refuses them with 503 once the gate is closed."""

    def __init__(self, app: WSGIApplication, runner: Runner) -> None:
        self._app = app
        self._runner = runner

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        runner = self._runner
        reservation = CURRENT_RESERVATION.get()
        if path in UNCOUNTED_PATHS:
            if reservation is not None:
                runner.release(reservation)  # it shall not count while it is answered
            return self._app(environ, _Exchange(runner, environ, start_response))
        if not path.isascii():  # PEP 3333 hands over bytes as Latin-1
            path = path.encode("latin-1").decode("utf-8", "replace")
        request = runner.admit(method, path, environ.get("HTTP_X_REQUEST_ID"), reservation)
        if request is None:
            return send(REFUSED, environ, start_response)
        token = CURRENT_REQUEST.set(request)
        exchange = _Exchange(runner, environ, start_response, request)
        try:
            exchange.body = self._app(environ, exchange)
        except BaseException:
            CURRENT_REQUEST.reset(token)
            request.status = 500
            runner.finish(request)
            raise
        if exchange.replacement is not None:
            _close(exchange.body)
            exchange.body = [exchange.replacement.body]
        return exchange


class _Exchange:
    """One request's `start_response` and, afterwards, its response's iterable.

    It knows what only the gate knows: that the connection has to close, that a request was cut; and its `close`
    ends the request.
    """

    __slots__ = (
        "_chunks",
        "_complete",
        "_environ",
        "_left",
        "_request",
        "_runner",
        "_start_response",
        "body",
        "replacement",
    )

    def __init__(
        self,
        runner: Runner,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        request: InFlightRequest | None = None,
    ) -> None:
        self._runner = runner
        self._environ = environ
        self._start_response = start_response
        self._request = request
        self._left = -1  # bytes of the body still to come, negative if nobody said how many
        self._complete = False
        self._chunks: Iterator[bytes] = iter(())
        self.body: Iterable[bytes] = ()
        self.replacement: Answer | None = None

    def __call__(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
        request = self._request
        if request is not None:
            request.status = int(status[:3])
            if request.cancelled and request.was_cut:
                # The application failed because we cancelled it: the client learns that, not "internal error".
                self.replacement = CUT
                request.status = CUT.status
                status, headers = CUT.status_line, CUT.headers
        for name, value in headers:
            if name.lower() == "content-length":
                self._left = int(value)
                break
        if not self._runner.gate.accepting:
            close_connection(self._environ)
        return self._start_response(status, headers, exc_info) if exc_info else self._start_response(status, headers)

    def __iter__(self) -> Iterator[bytes]:
        self._chunks = iter(self.body)
        return self

    def __next__(self) -> bytes:
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._complete = True
            raise
        self._left -= len(chunk)
        if self._left == 0:
            self._complete = True  # whether or not the server finds anybody to send it to
            if len(chunk) <= ONE_WRITE and self._request is not None:
                self._request.answered = True  # before the client can know it and ask who is being served
        return chunk

    def close(self) -> None:
        """The server is done with the response."""
        try:
            _close(self.body)
        finally:
            CURRENT_REQUEST.set(None)  # not by its token: a server may close in another context than it called in
            if self._request is not None and not self._request.ended:
                self._request.broken = not self._complete
                self._runner.finish(self._request)


def send(answer: Answer, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Send a whole answer."""
    if answer.close:
        close_connection(environ)
    start_response(answer.status_line, answer.headers)
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else answer.body]


def close_connection(environ: WSGIEnvironment) -> None:
    """Ask the server to close the connection after this response, if its adapter offers that."""
    close = environ.get(CLOSE_CONNECTION)
    if close is not None:
        close()


def _close(body: Iterable[bytes]) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()
