"""The collector alone: what it asks, and when it tells it. A real socket, and a made-up process behind it."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pooldrain.admin.collector import Collector
from pooldrain.admin.gathering import Gathering
from pooldrain.snapshot import no_counters


def answer(listener: socket.socket) -> None:
    """A process that has finished one request more each time that it is asked."""
    finished = 0
    while True:
        try:
            asking, _ = listener.accept()
        except OSError:  # it has ended
            return
        finished += 1
        status = {"pid": 1, "phase": "READY", "counters": {**no_counters(), "finished": finished}}
        with asking:
            asking.sendall(json.dumps(status).encode())


@pytest.fixture(autouse=True)
def _many_switches() -> Iterator[None]:
    """A thread goes on as soon as it may: what is noted too late is seen."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def test_what_is_fresh_is_news_already(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "1.sock"))
    listener.listen()
    answering = threading.Thread(target=answer, args=(listener,))
    answering.start()
    woken, pipe = os.pipe()
    collector = Collector(Gathering("pooldrain-sync", "1.0"), tmp_path, woken)
    seen: list[tuple[int, int]] = []

    def look() -> None:
        for _ in range(500):
            fresh = collector.fresh()
            _, told, _ = collector.news.next(-1, 0.0)
            assert told is not None
            seen.append((fresh["totals"]["finished"], told["totals"]["finished"]))

    with ThreadPoolExecutor() as pool:
        looking = pool.submit(look)
        while not looking.done():
            collector.turn()
        looking.result()
    collector.finish()
    listener.shutdown(socket.SHUT_RDWR)
    answering.join()
    listener.close()
    for descriptor in (woken, pipe):
        os.close(descriptor)
    assert seen[-1][0] >= 250, "it was asked"
    assert not [(fresh, told) for fresh, told in seen if told < fresh]
