"""What both backends answer: whole answers, whose bytes are made here, so that they are equal; and the probes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

from pooldrain.phases import Phase

JSON = "application/json"


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

    def raw(self, *, head_only: bool = False) -> bytes:
        """The answer as it goes over the wire, for a connection that no server looks after; always closes.

        `head_only`: for HEAD, whose answer has no body.
        """
        lines = [f"HTTP/1.1 {self.status_line}", *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1") + (b"" if head_only else self.body)


def to_json(payload: Mapping[str, Any]) -> bytes:
    """Indented as the tutorial prints it, with a final newline for terminals."""
    return (json.dumps(payload, indent=2, ensure_ascii=False) + "\n").encode()


def answer(payload: Mapping[str, Any], status: int = 200) -> Answer:
    """A JSON answer."""
    return Answer(status, to_json(payload))


@cache
def livez() -> Answer:
    """The process is alive: as long as it can answer, it is."""
    return answer({"status": "alive"})


@cache
def readyz(phase: Phase) -> Answer:
    """Whether to send requests here: 200 when ready, 503 before and from the announcement on."""
    ready = phase is Phase.READY
    return answer({"status": "ready" if ready else "not ready", "phase": phase.value}, 200 if ready else 503)


EVENT_STREAM = "text/event-stream"


def is_event_stream(content_type: str) -> bool:
    """Whether this is the type of a stream of server-sent events (WHATWG HTML, section 9.2)."""
    return content_type.partition(";")[0].strip().lower() == EVENT_STREAM


# How the bytes of an event end: with an empty line.
EVENT_ENDS = (b"\n\n", b"\r\r", b"\r\n\r\n")


def last_bytes(before: bytes, part: bytes) -> bytes:
    """What `EVENT_ENDS` has to be looked for in: an event may end with a part of its own."""
    return (before + part[-4:])[-4:]
