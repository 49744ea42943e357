"""The load client's accounting, against small servers that misbehave on purpose.

Everything else in the comparison rests on these classifications, so each is provoked with real sockets.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Self

import pytest

from pooldrain_compare.harness.http import MalformedResponseError, ResponseReader, header_lines
from pooldrain_compare.harness.load import (
    LoadClient,
    LoadResult,
    Mode,
    Outcome,
    Request,
    Workload,
    closed_before_write,
    constant,
    mixed,
)

BOUND = 10.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nDate: now\r\nServer: x\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: 4\r\n\r\nbusy"
)
PING = Request("GET", "/", "GET /")

Script = Callable[[socket.socket, int], None]  # what the server does with a connection, and which one it is


class MisbehavingServer:
    """Accepts connections one after the other and runs a script on each."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.address: tuple[str, int] = self._listener.getsockname()
        self.error: BaseException | None = None

    def _serve(self) -> None:
        number = 0
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(BOUND)
            with connection:
                try:
                    self._script(connection, number)
                except ConnectionError:
                    pass
                except BaseException as error:  # noqa: BLE001 - shown by the test
                    self.error = error
            number += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._thread.join(BOUND)
        assert not self._thread.is_alive()
        assert self.error is None, self.error

    def close(self) -> None:
        """Stop listening."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()


def read_request(connection: socket.socket) -> bytes:
    """One request, whole; nothing at the end of stream."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    return data


def reset(connection: socket.socket) -> None:
    """Close with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def times(number: int, request: Request = PING) -> Workload:
    """Every client asks `number` times."""
    return lambda _client: iter([request] * number)


def run(address: tuple[str, int], workload: Workload, mode: Mode, **options: float) -> LoadResult:
    """One client."""
    client = LoadClient(address, workload, clients=1, modes=(mode,), **options)
    return client.start().join(BOUND)


def outcomes(result: LoadResult) -> list[Outcome]:
    return [exchange.outcome for exchange in result.exchanges]


both_modes = pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)


@both_modes
def test_complete_answers_are_answered(mode: Mode) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            connection.sendall(OK)

    with MisbehavingServer(serve) as server:
        result = run(server.address, times(3), mode)
    assert outcomes(result) == [Outcome.ANSWERED] * 3
    assert [exchange.reused for exchange in result.exchanges] == (
        [False, True, True] if mode is Mode.KEEP_ALIVE else [False] * 3
    )
    for exchange in result.exchanges:
        assert exchange.sent_at is not None
        assert exchange.sent_at <= exchange.ended_at
    assert result.first_answer == result.exchanges[0].ended_at
    assert result.last_answer == result.exchanges[-1].ended_at


@both_modes
def test_error_statuses_are_answers_too(mode: Mode) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with MisbehavingServer(serve) as server:
        result = run(server.address, times(1), mode)
    assert outcomes(result) == [Outcome.ANSWERED]
    assert result.statuses == Counter({500: 1})


@both_modes
def test_503_with_close_is_refused_and_kept(mode: Mode) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(REFUSAL)

    with MisbehavingServer(serve) as server:
        result = run(server.address, times(2), mode)
    assert outcomes(result) == [Outcome.REFUSED] * 2  # the client went on, on a new connection
    (refusal,) = result.refusals
    assert refusal.body == b"busy"
    assert refusal.headers == (("connection", "close"), ("content-length", "4"), ("retry-after", "1"))


@both_modes
def test_reset_after_the_whole_request_is_lost(mode: Mode) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        reset(connection)

    with MisbehavingServer(serve) as server:
        result = run(server.address, times(1), mode)
    assert outcomes(result) == [Outcome.LOST]
    assert result.lost[0].reason == "unanswered: ECONNRESET"


@both_modes
def test_closed_without_an_answer_is_lost(mode: Mode) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)

    with MisbehavingServer(serve) as server:
        result = run(server.address, times(1), mode)
    assert outcomes(result) == [Outcome.LOST]
    assert result.lost[0].reason == "unanswered: closed"


@pytest.mark.parametrize(
    "beginning",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly a part",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbu",
        b"HTT",
    ],
    ids=["body", "head", "chunks", "refusal", "status"],
)
@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_truncated_answer_is_lost(beginning: bytes, how: str) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(beginning)
        if how == "reset":
            arrived.wait(BOUND)  # a reset may overtake bytes; not here
            reset(connection)

    class Watched(LoadClient):
        def _on_event(self, client: object) -> None:
            super()._on_event(client)  # type: ignore[arg-type]
            arrived.set()

    arrived = threading.Event()
    with MisbehavingServer(serve) as server:
        result = Watched(server.address, times(1), clients=1).start().join(BOUND)
    assert outcomes(result) == [Outcome.LOST]
    assert result.lost[0].reason == ("truncated: closed" if how == "closed" else "truncated: ECONNRESET")
    assert result.lost[0].status is None


def test_what_is_not_http_is_lost() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"SSH-2.0-OpenSSH\r\n")

    with MisbehavingServer(serve) as server:
        result = run(server.address, times(1), Mode.NEW)
    assert outcomes(result) == [Outcome.LOST]
    assert result.lost[0].reason.startswith("malformed")


def test_no_answer_in_time_is_lost() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.recv(1)  # until the client gives up

    with MisbehavingServer(serve) as server:
        result = run(server.address, times(1), Mode.KEEP_ALIVE, request_timeout=0.05)
    assert outcomes(result) == [Outcome.LOST]
    assert result.lost[0].reason == "unanswered: timed out"


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_an_idle_connection_closed_before_the_next_request_costs_nothing(how: str) -> None:
    """RFC 9112 9.3.1: the close had arrived before the client wrote, so it sees it and takes a new connection."""
    closed = threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(OK)
        if number == 0:
            answered.wait(BOUND)
            if how == "reset":
                reset(connection)
            connection.close()
            closed.set()

    answered = threading.Event()

    def two_requests(_client: int) -> Iterator[Request]:
        yield PING
        answered.set()
        assert closed.wait(BOUND)
        yield PING

    with MisbehavingServer(serve) as server:
        result = run(server.address, two_requests, Mode.KEEP_ALIVE)
    assert outcomes(result) == [Outcome.ANSWERED] * 2
    assert [exchange.reused for exchange in result.exchanges] == [False, False]
    assert result.stale == 1


def test_a_keep_alive_connection_closed_after_the_request_was_written_is_lost() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(OK)
        read_request(connection)  # taken, and not answered

    with MisbehavingServer(serve) as server:
        result = run(server.address, times(2), Mode.KEEP_ALIVE)
    assert outcomes(result) == [Outcome.ANSWERED, Outcome.LOST]
    assert result.lost[0].reused
    assert result.lost[0].reason == "unanswered: closed"
    assert result.stale == 0


def test_a_server_that_closes_without_reading_loses_the_request() -> None:
    """The kernel took the request for it; that nobody read it is no excuse."""

    def serve(connection: socket.socket, number: int) -> None:
        connection.recv(1, socket.MSG_PEEK)  # it has arrived

    with MisbehavingServer(serve) as server:
        result = run(server.address, times(1), Mode.NEW)
    assert outcomes(result) == [Outcome.LOST]
    assert result.lost[0].reason == "unanswered: ECONNRESET"


def test_unasked_bytes_on_an_idle_connection_make_the_client_take_a_new_one() -> None:
    spoken = threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(OK)
        if number == 0:
            answered.wait(BOUND)
            connection.sendall(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            spoken.set()
            read_request(connection)

    answered = threading.Event()

    def two_requests(_client: int) -> Iterator[Request]:
        yield PING
        answered.set()
        assert spoken.wait(BOUND)
        yield PING

    with MisbehavingServer(serve) as server:
        result = run(server.address, two_requests, Mode.KEEP_ALIVE)
    assert outcomes(result) == [Outcome.ANSWERED] * 2
    assert result.unsolicited == 1


def test_connection_close_is_respected() -> None:
    connections: list[int] = []

    def serve(connection: socket.socket, number: int) -> None:
        connections.append(number)
        read_request(connection)
        connection.sendall(OK.replace(b"\r\n\r\n", b"\r\nconnection: Close\r\n\r\n"))

    with MisbehavingServer(serve) as server:
        result = run(server.address, times(3), Mode.KEEP_ALIVE)
    assert outcomes(result) == [Outcome.ANSWERED] * 3
    assert connections == [0, 1, 2]
    assert result.stale == 0  # it closed by itself, it did not find out


@both_modes
def test_a_refused_connection_is_not_sent_and_ends_the_client(mode: Mode) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connecting is refused
        result = run(unused.getsockname(), constant(), mode)
    assert outcomes(result) == [Outcome.NOT_SENT]
    assert result.exchanges[0].reason == "refused"
    assert result.exchanges[0].sent_at is None


@both_modes
def test_a_busy_client_ends_when_the_listener_closes(mode: Mode) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            served.append(number)
            last = len(served) == 20
            if last:
                server.close()
            connection.sendall(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if last else OK)

    served: list[int] = []
    with MisbehavingServer(serve) as server:
        result = run(server.address, constant(), mode)
    assert outcomes(result) == [Outcome.ANSWERED] * 20 + [Outcome.NOT_SENT]


def test_a_fresh_connection_that_is_closed_may_not_be_written_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def connect() -> tuple[socket.socket, socket.socket]:
            ours = socket.create_connection(listener.getsockname(), BOUND)
            ours.setblocking(False)
            return ours, listener.accept()[0]

        ours, theirs = connect()
        assert closed_before_write(ours, fresh=True) == ""
        theirs.close()
        assert closed_before_write(ours, fresh=True) == "closed before the request was written"
        ours.close()

        ours, theirs = connect()
        reset(theirs)
        assert closed_before_write(ours, fresh=False) == "reset before the request was written"
        ours.close()

        ours, theirs = connect()
        theirs.sendall(b"x")
        assert closed_before_write(ours, fresh=False) == "unsolicited bytes"
        ours.close()
        theirs.close()


def test_stop_lets_requests_in_flight_end() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        arrived.set()
        released.wait(BOUND)
        connection.sendall(OK)
        assert not read_request(connection), "the client asked again after it was told to stop"

    arrived, released = threading.Event(), threading.Event()
    with MisbehavingServer(serve) as server:
        client = LoadClient(server.address, constant(), clients=1).start()
        assert arrived.wait(BOUND)
        client.stop()
        released.set()
        result = client.join(BOUND)
    assert outcomes(result) == [Outcome.ANSWERED]


def test_acknowledged_orders_are_told_from_others() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        if number == 0:
            connection.sendall(OK.replace(b"200 OK", b"201 Created"))
        elif number == 1:
            connection.sendall(REFUSAL)
        elif number == 2:
            connection.sendall(OK.replace(b"200 OK", b"500 Oops"))

    requests = [Request("POST", "/orders", "POST /orders", b"{}", str(number)) for number in range(4)]
    with MisbehavingServer(serve) as server:
        result = run(server.address, lambda _client: iter(requests), Mode.NEW)
    assert result.orders(Outcome.ANSWERED) == ["0"]
    assert result.orders(Outcome.REFUSED) == ["1"]
    assert result.orders(Outcome.LOST) == ["3"]


def test_many_clients_are_half_keep_alive_and_account_for_every_request() -> None:
    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            connection.sendall(OK)

    def connection_thread(connection: socket.socket, number: int) -> None:
        mine = connection.dup()  # the acceptor closes its own at once
        mine.settimeout(BOUND)
        thread = threading.Thread(target=_serve_and_close, args=(serve, mine, number), daemon=True)
        threads.append(thread)
        thread.start()

    threads: list[threading.Thread] = []
    with MisbehavingServer(connection_thread) as server:
        result = LoadClient(server.address, times(5), clients=8).start().join(BOUND)
        for thread in threads:
            thread.join(BOUND)
            assert not thread.is_alive()
    assert result.count(Outcome.ANSWERED, Mode.KEEP_ALIVE) == 20
    assert result.count(Outcome.ANSWERED, Mode.NEW) == 20
    assert len(result.exchanges) == 40
    assert len(threads) == 4 + 20  # a connection for each keep-alive client, one for each other request


def _serve_and_close(serve: Script, connection: socket.socket, number: int) -> None:
    with connection:
        serve(connection, number)


@pytest.mark.parametrize(
    ("wire", "status", "body", "keep_alive"),
    [
        (OK, 200, b"ok", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok", True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, b"x", False),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
            200,
            b"abc0123456789",
            True,
        ),
        (b"HTTP/1.1 503 No\r\nCONNECTION: Close\r\ncontent-length: 0\r\n\r\n", 503, b"", False),
    ],
)
def test_the_reader_knows_the_end_however_the_bytes_come(
    wire: bytes, status: int, body: bytes, keep_alive: bool
) -> None:
    for size in (1, 2, 3, 7, len(wire)):
        reader = ResponseReader()
        pieces = [wire[start : start + size] for start in range(0, len(wire), size)]
        assert [reader.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert (reader.status, reader.body, reader.keep_alive) == (status, body, keep_alive)


def test_a_response_without_length_ends_with_the_stream() -> None:
    reader = ResponseReader()
    assert not reader.feed(b"HTTP/1.1 200 OK\r\n\r\nall of it")
    assert reader.end_of_stream()
    assert reader.body == b"all of it"
    assert not reader.keep_alive


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"x",
        b"HTTP/1.1 abc\r\n\r\n",
        OK + b"more",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
    ],
)
def test_the_reader_refuses_what_is_not_http(wire: bytes) -> None:
    with pytest.raises(MalformedResponseError):
        ResponseReader().feed(wire)


def test_header_lines_leave_out_what_names_a_moment_or_a_server() -> None:
    head = b"HTTP/1.1 200 OK\r\nServer: a\r\nDate: b\r\nX-B: 2\r\nContent-Type: text/plain\r\n"
    assert header_lines(head) == (("content-type", "text/plain"), ("x-b", "2"))


def test_the_mixed_workload_has_unique_orders_and_every_kind_of_request() -> None:
    workload = mixed("run")
    requests = [request for client in range(4) for request, _ in zip(workload(client), range(100), strict=False)]
    orders = [request.order for request in requests if request.order is not None]
    assert len(orders) == len(set(orders)) > 50
    assert {request.route for request in requests} == {"GET /", "GET /db-test", "GET /work", "POST /orders"}
