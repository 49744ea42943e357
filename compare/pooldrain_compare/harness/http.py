"""HTTP as a client sees it: a reader of responses, and what their heads and problem documents say."""

from __future__ import annotations

import json


class MalformedResponseError(ValueError):
    """The server's bytes are not an HTTP/1.x response."""


class ResponseReader:
    """Reads one HTTP/1.x response from bytes as they come; knows when it is complete. No input or output."""

    __slots__ = ("_at", "_data", "_left", "body", "complete", "head", "keep_alive", "status")

    def __init__(self) -> None:
        self.status = 0
        self.head = b""
        self.body = b""
        self.keep_alive = False
        self.complete = False
        self._data = b""  # what has come
        self._at = 0  # where the body starts
        self._left: int | None = None  # length of the body; None: until the end of stream; -1: chunked

    @property
    def started(self) -> bool:
        """Some byte of the response has come."""
        return bool(self._data)

    def feed(self, data: bytes) -> bool:
        """Take bytes; True once the response is complete. Raises MalformedResponseError."""
        self._data = self._data + data if self._data else data
        if not self.head and not self._read_head():
            return False
        if self._left is None:
            return False
        if self._left == -1:
            self._read_chunks()
            return self.complete
        end = self._at + self._left
        if len(self._data) < end:
            return False
        if len(self._data) > end:
            raise MalformedResponseError("bytes after the end of the response")
        self.body = self._data[self._at :]
        self.complete = True
        return True

    def end_of_stream(self) -> bool:
        """The server closed; True when that is how this response ends."""
        if self.head and self._left is None:
            self.body = self._data[self._at :]
            self.complete, self.keep_alive = True, False
        return self.complete

    def _read_head(self) -> bool:
        while True:
            end = self._data.find(b"\r\n\r\n", self._at)
            if end < 0:
                if not b"HTTP/1.".startswith(self._data[self._at :][:7]):
                    raise MalformedResponseError("not an HTTP/1 response")
                return False
            head = self._data[self._at : end + 2]
            status = head[9:12]
            if not head.startswith(b"HTTP/1.") or not status.isdigit():
                raise MalformedResponseError("not an HTTP/1 response")
            self._at = end + 4
            if status[0] != 0x31:  # a 1xx is followed by the answer itself
                break
        self.head = head
        self.status = int(status)
        lower = head.lower()
        connection = _value(lower, b"connection")
        self.keep_alive = b"close" not in connection if head[7] == 0x31 else b"keep-alive" in connection
        length = _value(lower, b"content-length")
        if b"chunked" in _value(lower, b"transfer-encoding"):
            self._left = -1
        elif length:
            if not length.isdigit():
                raise MalformedResponseError("bad Content-Length")
            self._left = int(length)
        elif self.status in (204, 304):
            self._left = 0
        return True

    def _read_chunks(self) -> None:
        at = self._at
        pieces: list[bytes] = []
        while True:
            line = self._data.find(b"\r\n", at)
            if line < 0:
                return
            try:
                size = int(self._data[at:line].split(b";")[0], 16)
            except ValueError:
                raise MalformedResponseError("bad chunk size") from None
            if size == 0:
                end = self._data.find(b"\r\n", line + 2)  # the demo's servers send no trailers
                if end < 0:
                    return
                if end + 2 != len(self._data) or end != line + 2:
                    raise MalformedResponseError("bytes after the last chunk")
                self.body, self.complete = b"".join(pieces), True
                return
            at = line + 2 + size + 2
            if at > len(self._data):
                return
            if self._data[at - 2 : at] != b"\r\n":
                raise MalformedResponseError("chunk without an end")
            pieces.append(self._data[line + 2 : at - 2])


def _value(lower_head: bytes, name: bytes) -> bytes:
    start = lower_head.find(b"\r\n" + name + b":")
    if start < 0:
        return b""
    start += len(name) + 3
    return lower_head[start : lower_head.find(b"\r\n", start)].strip()


def header_lines(head: bytes) -> tuple[tuple[str, str], ...]:
    """Header lines of a response, names in lower case, without those that name a server or a moment."""
    pairs = (line.partition(b":") for line in head.split(b"\r\n")[1:] if line)
    lines = ((n.decode("latin-1").lower(), v.strip().decode("latin-1")) for n, _, v in pairs)
    return tuple(sorted(pair for pair in lines if pair[0] not in ("date", "server")))


def problem_detail(body: bytes) -> str:
    """What a problem document says; empty if it is none."""
    try:
        document = json.loads(body)
    except ValueError:
        return ""
    return str(document.get("detail", "")) if isinstance(document, dict) else ""
