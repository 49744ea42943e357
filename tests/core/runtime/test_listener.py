"""The listening socket: what `accept` may fail with, and how those are refused who came too late."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pooldrain.problems import REFUSED
from pooldrain.runtime.listener import FIRST_BYTES, AcceptExhausted, accepted, bind_socket, refuse_queued

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SLOW = 2.0  # seconds more that a busy machine may take


class Listener:
    """Its `accept` gives, or fails with, one thing after the other."""

    def __init__(self, *course: object) -> None:
        self._course = iter(course)

    def accept(self) -> tuple[object, object]:
        for each in self._course:
            if isinstance(each, int):
                raise OSError(each, os.strerror(each))
            return each, None
        raise BlockingIOError


def taken(listener: Any, limit: int = 9) -> list[object]:
    return [connection for connection, _ in accepted(listener, limit)]


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EINTR])
def test_a_client_that_has_left_costs_the_others_nothing(number: int) -> None:
    assert taken(Listener("a", number, "b")) == ["a", "b"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_when_there_is_no_room_it_is_said_and_not_tried_again(number: int) -> None:
    served: list[object] = []
    listener: Any = Listener("a", number, "b")
    with pytest.raises(AcceptExhausted, match=os.strerror(number)):
        served.extend(connection for connection, _ in accepted(listener))
    assert taken(listener) == ["b"]


def test_a_broken_listener_is_told_as_it_is() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        taken(Listener(errno.EBADF))


def test_no_more_are_taken_in_one_go_than_wanted() -> None:
    listener = Listener("a", "b", "c")
    assert (taken(listener, 2), taken(listener)) == (["a", "b"], ["c"])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with bind_socket("127.0.0.1", 0) as listening:
        listening.listen(128)
        yield listening


def test_those_who_came_too_late_are_refused_together_though_none_of_them_closes(listener: socket.socket) -> None:
    clients = [socket.create_connection(listener.getsockname(), timeout=5) for _ in range(40)]
    for client in clients:
        client.sendall(REQUEST)
    started = time.monotonic()
    assert refuse_queued(listener, REFUSED.raw()) == len(clients)
    assert time.monotonic() - started < 2 * FIRST_BYTES + SLOW
    for client in clients:
        assert client.recv(65536) == REFUSED.raw()
        assert client.recv(1) == b"", "an end, and no reset"
        client.close()
    assert listener.fileno() == -1


def test_who_says_nothing_is_closed_and_who_has_left_is_not_counted(listener: socket.socket) -> None:
    silent, gone, late = (socket.create_connection(listener.getsockname(), timeout=5) for _ in range(3))
    gone.close()
    late.sendall(REQUEST)
    assert refuse_queued(listener, REFUSED.raw()) == 1
    assert silent.recv(1) == b""
    assert late.recv(65536) == REFUSED.raw()
    for client in (silent, late):
        client.close()


def test_its_deadline_ends_it(listener: socket.socket) -> None:
    client = socket.create_connection(listener.getsockname(), timeout=5)
    assert refuse_queued(listener, REFUSED.raw(), deadline=time.monotonic()) == 0
    assert client.recv(1) == b""
    client.close()
