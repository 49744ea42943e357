"""The answers to what went wrong: RFC 9457 problem documents.

503 with Retry-After says that nothing was executed: send it elsewhere. A request that was cut at a deadline, or that
failed after it was given its first connection, is answered 504 without it: whether it was executed is not known, so
that a proxy which repeats what was answered 503 executes nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from pooldrain.answers import EVENT_STREAM, Answer, is_event_stream, to_json
from pooldrain.in_flight import InFlightRequest

PROBLEM_JSON = "application/problem+json"

# Seconds a refused client is asked to wait: the next process, or the next pod, is there by then.
RETRY_AFTER = 1


def problem(status: int, detail: str, extra_headers: Iterable[tuple[str, str]] = (), *, close: bool = False) -> Answer:
    """A problem document (RFC 9457); `about:blank` means that the status says it all."""
    body = to_json({"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail})
    return Answer(status, body, PROBLEM_JSON, tuple(extra_headers), close)


_RETRY = (("retry-after", str(RETRY_AFTER)),)

# What a refused request gets; the same bytes every time, so made once.
REFUSED = problem(503, "the service is shutting down and takes no new requests", _RETRY, close=True)
CUT = problem(504, "the service is shutting down and this request overstayed its deadline", close=True)

# What a browser's EventSource gets instead, if streams are ended: after any status but 200 it never comes again, after
# the end of a stream it does (WHATWG HTML, section 9.2.3).
_EMPTY_STREAM = Answer(200, b": the service restarts\n\n", EVENT_STREAM, (("cache-control", "no-store"),), close=True)


def refusal(accept: str | None, *, ends_streams: bool) -> Answer:
    """What a refused request gets, by its Accept."""
    return _EMPTY_STREAM if ends_streams and accept is not None and is_event_stream(accept) else REFUSED


@dataclass(frozen=True, slots=True)
class Failure:
    """What keeps a request from its database."""

    before: Answer  # to one that has not been given a connection yet
    after: Answer  # to one that has

    def answer(self, request: InFlightRequest | None) -> Answer:
        """The answer to `request`."""
        return self.after if request is not None and request.connected else self.before


def _failure(detail: str, *, close: bool = False) -> Failure:
    later = f"{detail}; what the request did before may have been executed"
    return Failure(problem(503, detail, _RETRY, close=close), problem(504, later, close=close))


POOL_CLOSED = _failure("the service is shutting down and its connection pool is closed", close=True)
POOL_EXHAUSTED = _failure("no database connection became free in time")
DATABASE_UNAVAILABLE = _failure("the database is out of reach")
INTERNAL_ERROR = problem(500, "the request failed; the log says why")

# What frameworks answer to an error that nobody has handled, by what is in the page: Werkzeug (Flask), Starlette
# (FastAPI), Django. And how long the first two are, for HEAD.
_DEFAULT_PAGES = (b"<title>500 Internal Server Error</title>", b"<h1>Server Error (500)</h1>")
_DEFAULT_TEXT = b"Internal Server Error"
_DEFAULT_LENGTHS = ("265", str(len(_DEFAULT_TEXT)))


def is_default_page(body: bytes) -> bool:
    """Whether the body of an answer 500 is what a framework says when its application has said nothing."""
    return body == _DEFAULT_TEXT or any(mark in body for mark in _DEFAULT_PAGES)


def is_default_length(content_length: str) -> bool:
    """The same of an answer to HEAD, by its Content-Length."""
    return content_length in _DEFAULT_LENGTHS


_INVALID = {
    400: "the request is not valid HTTP",
    413: "the request's body is too large",
    414: "the request's target is too long",
    417: "the request's expectation cannot be met",
    431: "the request's header is too large",
    501: "the request's transfer coding is not supported",
}


def invalid_request(status: int = 400) -> Answer:
    """The answer to what a server cannot read as a request, of which only 400 is sent by all servers."""
    return problem(status, _INVALID.get(status, _INVALID[400]), close=True)


def not_found(path: str) -> Answer:
    """404 for a path without a route."""
    return problem(404, f"there is no route {path}")


def method_not_allowed(method: str, path: str, allowed: Iterable[str]) -> Answer:
    """405, with the methods the route has (RFC 9110 section 15.5.6)."""
    names = ", ".join(sorted(allowed))
    return problem(405, f"{path} takes {names}, not {method}", [("allow", names)])
