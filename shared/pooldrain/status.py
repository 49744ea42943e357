"""What both backends answer: statuses, payloads, problem documents. Bytes are made here, so they are equal.

Errors are RFC 9457 problem documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

from pooldrain.ledger import Holding, LeakRule
from pooldrain.shutdown import Phase

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"

# Seconds a refused client is asked to wait: the next process, or the next pod, is there by then.
RETRY_AFTER = 1


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The pool's numbers, as the tutorial prints them."""

    pool_size: int  # connections the pool keeps
    checkedout: int  # connections out of the pool
    overflow: int  # connections open beyond pool_size
    idle: int  # open connections in the pool

    def as_dict(self) -> dict[str, int]:
        """JSON-ready, in the tutorial's order."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer: status, headers (names in lower case), body."""

    status: int
    body: bytes
    content_type: str = JSON
    extra_headers: tuple[tuple[str, str], ...] = ()
    close: bool = False  # ask the server to close the connection after it

    @property
    def status_line(self) -> str:
        """`503 Service Unavailable`, as WSGI wants it."""
        return f"{self.status} {HTTPStatus(self.status).phrase}"

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Its headers, but for Connection, which belongs to the server."""
        return [
            ("content-type", self.content_type),
            ("content-length", str(len(self.body))),
            *self.extra_headers,
        ]

    def raw(self) -> bytes:
        """The answer as it goes over the wire, for a connection that no server looks after; always closes."""
        lines = [f"HTTP/1.1 {self.status_line}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1") + self.body


def to_json(payload: Mapping[str, Any]) -> bytes:
    """Indented as the tutorial prints it, with a final newline for terminals."""
    return (json.dumps(payload, indent=2, ensure_ascii=False) + "\n").encode()


def answer(payload: Mapping[str, Any], status: int = 200) -> Answer:
    """A JSON answer."""
    return Answer(status, to_json(payload))


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


def livez() -> Answer:
    """The process is alive: as long as it can answer, it is."""
    return answer({"status": "alive"})


def readyz(phase: Phase) -> Answer:
    """Whether to send requests here: 200 when ready, 503 before and from the announcement on."""
    ready = phase is Phase.READY
    return answer({"status": "ready" if ready else "not ready", "phase": phase.value}, 200 if ready else 503)


def pool_status_page(status: PoolStatus, *, connection_leak: bool, accepting: bool, active: int) -> dict[str, Any]:
    """`/pool-status`: exactly the tutorial's keys."""
    return {
        "pool_status": status.as_dict(),
        "connection_leak": connection_leak,
        "requests": {"accepting": accepting, "active": active},
    }


def pool_status_detail(holdings: Iterable[Holding], leaks: Mapping[LeakRule, int], phase: Phase) -> dict[str, Any]:
    """What `?detail=1` adds: every outstanding checkout by holder, and the leak counters."""
    return {
        "phase": phase.value,
        "checkouts": [holding.as_dict() for holding in holdings],
        "leaks": {rule.value: count for rule, count in leaks.items()},
    }
