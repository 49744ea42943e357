"""What a process remembers of its signals."""

from __future__ import annotations

import signal

import pytest

from pooldrain.runtime.signals import SignalWatch

Naming = type(signal.SIGTERM)


def test_a_worker_takes_the_first_of_two_signals_that_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = SignalWatch(managed=True)
    waiting = [signal.SIGTERM]  # comes while the first one is handled

    def naming(number: int) -> signal.Signals:
        if waiting:
            watch.handle(waiting.pop())
        return Naming(number)

    monkeypatch.setattr(signal, "Signals", naming)
    watch.handle(signal.SIGTERM)
    assert watch.received == ["SIGTERM"], "a second one would hurry it"
