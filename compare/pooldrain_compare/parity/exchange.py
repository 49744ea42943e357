"""One request of a scenario on a connection of its own thread, and the whole answer, byte by byte."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from dataclasses import dataclass
from typing import Any

from pooldrain_compare.harness.http import MalformedResponseError, ResponseReader, header_lines

Address = tuple[str, int]

CONNECT_TIMEOUT = 10.0
ANSWER_TIMEOUT = 40.0
END_TIMEOUT = 5.0  # for the server's end of a connection that it said it would close


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: a whole answer, or what there was of it and why there is no more."""

    status_line: str  # "" if nothing came
    headers: tuple[tuple[str, str], ...]  # sorted, names in lower case, but for Date and Server
    body: bytes
    failure: str  # "" for a whole answer
    ending: str  # how the connection ended: closed, reset, open (kept), or left (by the client)

    @property
    def status(self) -> int | None:
        """The status of a whole answer, None if there is none."""
        return None if self.failure else int(self.status_line.split(" ", 2)[1])

    def as_dict(self) -> dict[str, Any]:
        """For comparing and showing."""
        return {
            "status": self.status_line,
            "headers": [f"{name}: {value}" for name, value in self.headers],
            "body": self.body.decode("utf-8", "backslashreplace").splitlines(),
            "failure": self.failure,
            "connection": self.ending,
        }


# Bytes of a body up to which it is shown, and compared.
SHOWN = 4096


def answers_in(data: bytes) -> list[dict[str, Any]]:
    """What a server has sent on one connection, answer by answer; a body that is not whole is not shown."""
    answers = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        body, whole, data = _take_body(head.lower(), data)
        if not whole:
            shown = "broken off"
        elif b"content-type: text/event-stream" in head.lower():  # how many there are is chance
            shown = "whole events" if not body or body.endswith(b"\n\n\r\n") else "half an event at its end"
        else:
            shown = f"{len(body)} bytes" if len(body) > SHOWN else body.decode("utf-8", "backslashreplace")
        headers = [f"{name}: {value}" for name, value in header_lines(head + b"\r\n")]
        status_line = head.partition(b"\r\n")[0].decode("latin-1")
        answers.append({"status": status_line, "headers": headers, "body": shown.splitlines()})
    return answers


def _take_body(lower_head: bytes, data: bytes) -> tuple[bytes, bool, bytes]:
    """The body, whether it is whole, and what follows it."""
    if b"transfer-encoding: chunked" in lower_head:
        body, end, rest = data.partition(b"0\r\n\r\n")
        return body, bool(end), rest
    _, named, length = lower_head.partition(b"content-length:")
    size = int(length.partition(b"\r\n")[0]) if named else 0
    return data[:size], len(data) >= size, data[size:]


class Wire:
    """A connection to a server."""

    written = False  # bytes were sent on it as they are
    received: bytes | None = None  # all that was answered to them, once it is read

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection(address, CONNECT_TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.host = f"{address[0]}:{address[1]}"

    def close(self) -> None:
        """Leave."""
        self.socket.close()

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.written = True
        self.socket.settimeout(ANSWER_TIMEOUT)
        self.socket.sendall(data)

    def answering(self, timeout: float) -> bool:
        """Wait for an answer's first byte; False if none comes in `timeout` seconds."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def take(self, timeout: float = END_TIMEOUT) -> str:
        """Read all that comes, and wait for the server's end of the connection."""
        self.received = b""
        self.socket.settimeout(timeout)
        try:
            while data := self.socket.recv(1 << 20):
                self.received += data
        except TimeoutError:
            return "open"
        except OSError:
            return "reset"
        return "closed"

    def ending(self, timeout: float = END_TIMEOUT) -> str:
        """Wait for the server's end of the connection."""
        self.socket.settimeout(timeout)
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return "open"
        except OSError:
            return "reset"
        return "unsolicited bytes" if data else "closed"


class Exchange:
    """A request that is under way. Its answer is read in a thread."""

    def __init__(self, wire: Wire, method: str, target: str, name: str, body: bytes, *, keep: bool) -> None:
        self._wire = wire
        self._keep = keep
        self._reader = ResponseReader()
        self._left = False
        self._condition = threading.Condition()
        self._answer: Answer | None = None
        lines = [f"{method} {target} HTTP/1.1", f"Host: {wire.host}", f"X-Request-ID: {name}"]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        wire.socket.settimeout(ANSWER_TIMEOUT)
        wire.socket.sendall("\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body)
        self._thread = threading.Thread(target=self._read, name=f"exchange {name}", daemon=True)
        self._thread.start()

    def answer(self, timeout: float) -> Answer | None:
        """Wait for the answer, or for the end of the connection; None if neither comes in `timeout` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self._answer is not None, timeout)
            return self._answer

    def first_bytes(self, timeout: float) -> bool:
        """Wait for the first bytes of the body; False if they do not come in `timeout` seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: self._body_begun or self._answer is not None, timeout)

    def leave(self) -> None:
        """Close the connection without waiting for the answer."""
        self._left = True
        with contextlib.suppress(OSError):
            self._wire.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        self._wire.close()

    @property
    def _body_begun(self) -> bool:
        _, end, body = self._reader._data.partition(b"\r\n\r\n")
        return bool(end and body)

    def _read(self) -> None:
        failure = ""
        try:
            while not self._reader.complete:
                data = self._wire.socket.recv(65536)
                with self._condition:
                    complete = self._reader.feed(data) if data else self._reader.end_of_stream()
                    self._condition.notify_all()
                if not data and not complete:
                    failure = "truncated: closed" if self._reader.started else "unanswered: closed"
                    break
        except TimeoutError:
            failure = "timed out"
        except MalformedResponseError as error:
            failure = f"malformed: {error}"
        except OSError as error:
            failure = f"{'truncated' if self._reader.started else 'unanswered'}: {type(error).__name__}"
        ending = self._end(failure)
        head, _, rest = self._reader._data.partition(b"\r\n\r\n")
        answer = Answer(
            status_line=head.partition(b"\r\n")[0].decode("latin-1"),
            headers=header_lines(head + b"\r\n") if head else (),
            body=_received(head, rest) if failure else self._reader.body,
            failure="left by the client" if self._left else failure,
            ending=ending,
        )
        with self._condition:
            self._answer = answer
            self._condition.notify_all()

    def _end(self, failure: str) -> str:
        if self._left:
            return "left"
        if failure or not self._reader.keep_alive:
            ending = self._wire.ending()
            self._wire.close()
            return ending
        if not self._keep:
            self._wire.close()  # at once, so that the server does not have to wait for it
            return "left"
        return "open"


def _received(head: bytes, rest: bytes) -> bytes:
    """What came of a body that is not whole, without the framing of its chunks."""
    if b"chunked" not in head.lower():
        return rest
    body = b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size.split(b";")[0] or b"0", 16)
        body += rest[:length]
        rest = rest[length + 2 :]
    return body
