"""waitress's map, from which many threads take what has happened, and who serves it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pooldrain_sync.engine.poller import KIND
from pooldrain_sync.engine.slots import RunSlots
from pooldrain_sync.servers.waitress_loop import PolledMap, SlotDispatcher

AT_ONCE = 0.0  # seconds
BRIEFLY = 5.0


class Channel:
    """Takes what comes; wants to read, to write, or nothing."""

    wants = "read"

    def __init__(self, polled: PolledMap) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.descriptor = self.ours.fileno()
        self.happened: list[str] = []
        self._polled = polled
        polled[self.descriptor] = self
        polled.arm(self.descriptor)

    def readable(self) -> bool:
        return self.wants == "read"

    def writable(self) -> bool:
        return self.wants == "write"

    def handle_read_event(self) -> None:
        self.happened.append("read")
        self.ours.recv(100)

    def handle_write_event(self) -> None:
        self.happened.append("write")
        self.wants = "read"

    def close(self) -> None:
        del self._polled[self.descriptor]
        self.ours.close()
        self.theirs.close()


@pytest.fixture(params=["epoll", "plain"])
def polled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PolledMap:
    monkeypatch.setenv(KIND, request.param)
    return PolledMap()


@pytest.fixture
def channel(polled: PolledMap) -> Iterator[Channel]:
    made = Channel(polled)
    yield made
    made.close()


def test_what_happens_is_attended_to_once_and_waited_for_again(polled: PolledMap, channel: Channel) -> None:
    for _ in range(2):
        channel.theirs.send(b"x")
        assert list(polled.poller.poll(BRIEFLY, 1)) == [channel.descriptor]
        assert list(polled.poller.poll(AT_ONCE, 1)) == []
        polled.attend(channel.descriptor)
    assert channel.happened == ["read", "read"]


def test_who_has_changed_what_a_channel_waits_for_arms_it_for_that(polled: PolledMap, channel: Channel) -> None:
    channel.wants = "write"
    polled.arm(channel.descriptor)
    assert list(polled.poller.poll(BRIEFLY, 1)) == [channel.descriptor]
    polled.attend(channel.descriptor)
    assert channel.happened == ["write"]
    assert polled.waits(channel.descriptor), "to read, now"


def test_what_is_claimed_is_left_alone_until_it_is_released(polled: PolledMap, channel: Channel) -> None:
    assert polled.claim(channel.descriptor)
    assert not polled.claim(channel.descriptor)
    channel.wants = "write"
    polled.arm(channel.descriptor)  # by a thread that has changed what it waits for: whoever has it will see
    assert list(polled.poller.poll(AT_ONCE, 1)) == []
    polled.attend(channel.descriptor)
    assert channel.happened == []
    polled.release(channel.descriptor)
    assert list(polled.poller.poll(BRIEFLY, 1)) == [channel.descriptor]


def test_a_channel_that_wants_nothing_any_more_is_not_waited_for(polled: PolledMap, channel: Channel) -> None:
    channel.theirs.send(b"x")
    assert list(polled.poller.poll(BRIEFLY, 1)) == [channel.descriptor]
    channel.wants = ""
    polled.attend(channel.descriptor)
    assert channel.happened == []
    assert list(polled.poller.poll(AT_ONCE, 1)) == []


def test_a_call_that_the_main_thread_takes_itself_is_repeated(polled: PolledMap, channel: Channel) -> None:
    slots = RunSlots(1)
    dispatcher = SlotDispatcher(polled, slots)
    slots.poll()  # a thread is about to wait for clients
    dispatcher.add_task(channel)
    channel.theirs.send(b"x")
    dispatcher.take_over()
    assert channel.happened == ["read"], "and with it the call itself"
    assert len(polled.poller.poll(BRIEFLY, 1)) == 1, "the thread is called again"
    assert dispatcher.take_all() == [channel]
