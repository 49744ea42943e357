"""The request gate as WSGI middleware (PEP 3333).

A request is in flight from here (or from its complete head, if the server waits for its body first) until the
server has called `close()` on the response and its client has taken it, or it was broken off.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from pooldrain.answers import EVENT_ENDS, Answer, is_event_stream, last_bytes
from pooldrain.gate import BODILESS, CLIENT, CLOSE_CONNECTION, CURRENT_RESERVATION, ONE_WRITE
from pooldrain.in_flight import CURRENT_REQUEST, Client, InFlightRequest
from pooldrain.problems import CUT, Failure, is_default_length, is_default_page, refusal
from pooldrain.sqla.errors import failure_of, tell_failure
from pooldrain_sync.runner import Runner

logger = logging.getLogger("pooldrain")

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class ThreadedClient(Client, Protocol):
    """What a threaded server's adapter puts into the environment as CLIENT."""

    @property
    def admitted(self) -> InFlightRequest | None:
        """Its request, if it was admitted before its body had come."""
        ...

    @property
    def left(self) -> bool:
        """Whether it has left in the middle of its request: nobody gets the answer to that."""
        ...

    def broken_off(self) -> Exception:
        """What to raise where a response has to be broken off."""
        ...

    def sendable(self, body: Iterable[bytes]) -> Iterable[Any]:
        """The parts of the body that the server wants in its place: with a length, as bytes have."""
        ...


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
        if path in runner.probes.uncounted:
            if reservation is not None:
                runner.release(reservation)  # it shall not count while it is answered
            uncounted = _Exchange(runner, environ, start_response)
            answer = runner.probes.answer(method, path, runner.phase)
            begin = uncounted.start_response
            uncounted.body = self._app(environ, begin) if answer is None else send(answer, environ, begin)
            return uncounted
        client: ThreadedClient | None = environ.get(CLIENT)
        request = None if client is None else client.admitted
        if request is None:
            given_id, address = environ.get("HTTP_X_REQUEST_ID"), environ.get("REMOTE_ADDR", "")
            request = runner.admit(method, readable(path), given_id, reservation, address=address)
            if request is None:
                refused = refusal(environ.get("HTTP_ACCEPT"), ends_streams=runner.gate.ends_streams)
                return send(refused, environ, start_response)
        request.client = client
        token = CURRENT_REQUEST.set(request)
        exchange = _Exchange(runner, environ, start_response, request, client)
        try:
            exchange.body = self._app(environ, exchange.start_response)
            exchange.settle()
        except BaseException as error:
            explanation = exchange.explain(error)
            if explanation is None:
                CURRENT_REQUEST.reset(token)
                request.status = 500
                runner.finish(request)
                raise
            exchange.replace(explanation)
        if exchange.replacement is not None:
            exchange.drop_body()
            exchange.body = [b"" if method == "HEAD" else exchange.replacement.body]
        return exchange


class _Exchange:
    """One request's `start_response` and, afterwards, its response's iterable.

    It knows what only the gate knows: that the connection has to close, that a request was cut; and its `close`
    ends the request.
    """

    # Defaults live in the class: an exchange is made for every answer, and few of them change.
    _begun = False  # some of the body was handed over before the drain timed out
    _settled = False  # the application has returned, with the answer's head decided
    _held: tuple[str, list[tuple[str, str]], Any] | None = None  # the head of a page that may have to be replaced
    _events = False  # it is a stream of events
    _left = math.inf  # bytes of the body still to come, if somebody has said how many
    _write: Callable[[bytes], object]
    _complete = False
    body: Iterable[bytes] = ()
    replacement: Answer | None = None

    def __init__(
        self,
        runner: Runner,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        request: InFlightRequest | None = None,
        client: ThreadedClient | None = None,
    ) -> None:
        self._runner = runner
        self._environ = environ
        self._start_response = start_response
        self._request = request
        self._client = client

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
        """Begin the response."""
        request = self._request
        code = int(status[:3])
        if request is not None:
            request.status = None if self._client is not None and self._client.left else code
            if request.cancelled and request.was_cut:
                # The application failed because we cancelled it: the client learns that, not "internal error".
                self.replacement = CUT
                request.status = CUT.status
                status, headers = CUT.status_line, CUT.headers
            elif code == 500 and request.failure is not None and not self._settled:
                self._held = (status, headers, exc_info)  # if this is its framework's page, ours says more
                return self.write
        return self._begin(code, status, headers, exc_info)

    def _begin(self, code: int, status: str, headers: list[tuple[str, str]], exc_info: Any) -> Any:
        self._left = math.inf
        if code in BODILESS:
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
            self._left = 0
        else:
            for name, value in headers:
                lower = name.lower()
                if lower == "content-length":
                    self._left = int(value)
                elif lower == "content-type":
                    self._events = is_event_stream(value)
        if not self._runner.gate.keep_alive:
            close_connection(self._environ)
        begin = self._start_response
        self._write = begin(status, headers, exc_info) if exc_info else begin(status, headers)
        return self.write

    def explain(self, error: BaseException) -> Answer | None:
        """The answer to what the application has let through; None if that is for the server."""
        request = self._request
        if request is None or not isinstance(error, Exception):
            return None
        if request.cancelled:
            return CUT
        failure = failure_of(error)
        if failure is None:
            return None
        tell_failure(error, request.route)
        return failure.answer(request)

    def settle(self) -> None:
        """The application has returned. The page of a framework that knows of no database is replaced by ours."""
        self._settled = True
        if self._held is None or self.replacement is not None:
            return
        chunks = iter(self.body)
        first = next(chunks, b"")
        _, headers, _ = self._held
        if self._environ["REQUEST_METHOD"] == "HEAD":
            default = any(is_default_length(value) for name, value in headers if name.lower() == "content-length")
        else:
            default = is_default_page(first)
        failure = None if self._request is None else self._request.failure
        if default and isinstance(failure, Failure):
            self._held = None
            self.replacement = failure.answer(self._request)
            self.start_response(self.replacement.status_line, self.replacement.headers)
        else:
            self._let_through()
            self.body = _Rejoined(first, chunks, self.body)

    def drop_body(self) -> None:
        """Close the body that is not sent; what that raises, the application's own work after its answer, is logged."""
        try:
            _close(self.body)
        except Exception as error:
            if not self._unwinds(error):
                logger.error("closing a response failed", exc_info=error)

    def _let_through(self) -> None:
        if self._held is not None:
            (status, headers, exc_info), self._held = self._held, None
            self._begin(int(status[:3]), status, headers, exc_info)

    def write(self, data: bytes) -> None:
        """Send a part of the body: PEP 3333's older way."""
        self._let_through()
        if self._environ["REQUEST_METHOD"] != "HEAD":
            self._left -= len(data)
            if self._left < 0:
                raise self._breach("longer")
        if self._request is not None:
            self._request.sent += len(data)
        self._write(data)

    def replace(self, answer: Answer) -> None:
        """Send `answer` instead of what the application began to send, or failed to. In an `except` clause."""
        self.replacement = answer
        if self._request is not None:
            self._request.status = answer.status
        self._held = None
        if answer.close or not self._runner.gate.keep_alive:
            close_connection(self._environ)
        self._start_response(answer.status_line, answer.headers, sys.exc_info())

    def __iter__(self) -> Iterator[bytes]:
        request = self._request
        last = b""  # bytes of a stream of events
        try:
            if self._environ["REQUEST_METHOD"] == "HEAD":
                next(iter(self.body), None)  # which may begin the answer; its length is true, and nothing of it comes
                self._complete = True
                return
            client = None if self._events else self._client  # a file that the kernel sends has no events
            for chunk in self.body if client is None else client.sendable(self.body):
                if request is not None and not request.cancelled:
                    self._begun = True
                size = len(chunk)
                if request is not None:
                    request.sent += size
                self._left -= size
                if self._left <= 0:
                    if self._left < 0:
                        raise self._breach("longer")
                    self._complete = True  # whether or not the server finds anybody to send it to
                    if size <= ONE_WRITE and request is not None:
                        request.answered = True  # before the client can know it and ask who is being served
                yield chunk
                if self._events:
                    last = last_bytes(last, chunk)
                    if self._runner.gate.ends_streams and last.endswith(EVENT_ENDS):
                        close_connection(self._environ)  # for its client to come again on another one
                        break
                if self._begun and request is not None and request.cancelled and not self._complete:
                    raise self._broken_off()
            else:
                if 0 < self._left < math.inf:
                    raise self._breach("shorter")
        except Exception as error:
            if not self._unwinds(error):
                raise
            if not self._complete:
                raise self._broken_off() from None
        self._complete = True

    def _breach(self, body: str) -> Exception:
        """What to raise when the body is not as long as was announced: its connection must not be used again."""
        if self._request is None or not self._request.cancelled:
            environ = self._environ
            path = readable(environ.get("PATH_INFO", ""))
            self._runner.response_broken(self._request, environ["REQUEST_METHOD"], path, body)
        return self._broken_off()

    def _broken_off(self) -> Exception:
        return BrokenPipeError() if self._client is None else self._client.broken_off()

    def _unwinds(self, error: Exception) -> bool:
        """Whether what has just failed did so because its request was cancelled: then nobody is to blame for it."""
        if self._request is None or not self._request.cancelled or (self._complete and isinstance(error, OSError)):
            return False  # an OSError behind a whole answer: its client has left
        self._request.unwound = True
        return True

    def close(self) -> None:
        """The server is done with the response."""
        try:
            _close(self.body)
        except Exception as error:
            if not self._unwinds(error):
                raise
        finally:
            CURRENT_REQUEST.set(None)  # not by its token: a server may close in another context than it called in
            if self._request is not None and not self._request.ended:
                self._request.broken = not self._complete
                if self._client is None:
                    self._finish()
                else:
                    self._client.when_sent(self._finish)

    def _finish(self) -> None:
        if self._request is not None and not self._request.ended:
            self._runner.finish(self._request)


class _Rejoined:
    """A body whose first part has been looked at."""

    def __init__(self, first: bytes, rest: Iterator[bytes], body: Iterable[bytes]) -> None:
        self._first = first
        self._rest = rest
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        yield from self._rest

    def close(self) -> None:
        """Close the body itself."""
        _close(self._body)


def send(answer: Answer, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Send a whole answer."""
    if answer.close:
        close_connection(environ)
    start_response(answer.status_line, answer.headers)
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else answer.body]


def readable(path: str) -> str:
    """A path as people write it; PEP 3333 hands over its bytes as Latin-1."""
    return path if path.isascii() else path.encode("latin-1").decode("utf-8", "replace")


def close_connection(environ: WSGIEnvironment) -> None:
    """Ask the server to close the connection after this response, if its adapter offers that."""
    close = environ.get(CLOSE_CONNECTION)
    if close is not None:
        close()


def _close(body: Iterable[bytes]) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()
