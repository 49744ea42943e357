"""The answers to what went wrong: RFC 9457 problem documents."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from pooldrain.answers import Answer, to_json

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
POOL_CLOSED = problem(503, "the service is shutting down and its connection pool is closed", _RETRY, close=True)
CUT = problem(503, "the service is shutting down and this request overstayed its deadline", _RETRY, close=True)
POOL_EXHAUSTED = problem(503, "no database connection became free in time", _RETRY)
DATABASE_UNAVAILABLE = problem(503, "the database is out of reach", _RETRY)
INTERNAL_ERROR = problem(500, "the request failed; the log says why")

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
