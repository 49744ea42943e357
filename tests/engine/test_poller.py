"""The pollers: each arming tells of one event, to one thread, whatever the kind."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from pooldrain_sync.engine.poller import KIND, Poller, make_poller

KINDS = [kind for kind in ("epoll", "kqueue", "plain") if kind == "plain" or hasattr(select, kind)]


@pytest.fixture(params=KINDS)
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Poller]:
    monkeypatch.setenv(KIND, request.param)
    made = make_poller()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_an_arming_tells_of_one_event(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    assert list(poller.poll(0, 1)) == []
    theirs.send(b"x")
    assert list(poller.poll(5, 1)) == [ours.fileno()]
    assert list(poller.poll(0, 1)) == [], "though nobody has read it"
    poller.arm(ours.fileno())
    assert list(poller.poll(5, 1)) == [ours.fileno()]


def test_it_waits_for_room_to_write(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(b"x" * 65536)
    poller.arm(ours.fileno(), write=True)
    assert list(poller.poll(0, 1)) == []
    while True:
        theirs.recv(1 << 20)
        if list(poller.poll(0.05, 1)) == [ours.fileno()]:
            break


def test_what_is_removed_is_not_told_of(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    poller.remove(ours.fileno())
    ours.close()
    theirs.close()
    assert list(poller.poll(0, 1)) == []


def test_what_is_armed_while_another_thread_waits_is_waited_for(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    told: list[int] = []
    thread = threading.Thread(target=lambda: told.extend(poller.poll(10, 1)))
    thread.start()
    poller.add(ours.fileno())
    theirs.send(b"x")
    thread.join(10)
    assert told == [ours.fileno()]
