"""A service's transcript as it is written: the suite waits for its events instead of letting time pass.

The transcript is a named pipe to the service; what comes through it is also kept in a file, as it came.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

Record = dict[str, Any]

_LOOK = 0.25  # seconds between two looks at whether the service still runs, while waiting for its events


class TranscriptPipe:
    """The reading end. `stop` after the service has ended; then `records` are complete."""

    def __init__(self, path: Path, copy: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._writer = os.open(path, os.O_WRONLY)  # ours: there is no end of file before we say so
        os.set_blocking(self._reader, True)
        self._copy = copy
        self._condition = threading.Condition()
        self._records: list[tuple[Record, float]] = []
        self._thread = threading.Thread(target=self._read, name="transcript", daemon=True)
        self._thread.start()

    @property
    def records(self) -> list[Record]:
        """The events so far."""
        with self._condition:
            return [record for record, _ in self._records]

    def last(self, wanted: Callable[[Record], bool]) -> float | None:
        """When the last such event happened, in monotonic seconds; None if there was none.

        Never too early, and too late by the least delay with which any event of its process was read.
        """
        with self._condition:
            return last_happened(self._records, wanted)

    def stop(self) -> None:
        """Read to the end, which comes when no process holds the other end any more."""
        os.close(self._writer)
        self._thread.join()
        os.close(self._reader)
        self.path.unlink()

    def await_events(self, wanted: Callable[[list[Record]], bool], timeout: float, running: Callable[[], bool]) -> bool:
        """Wait until the events so far are what is wanted; False after `timeout` seconds, or if the service ended."""
        deadline = time.monotonic() + timeout
        with self._condition:
            while not wanted([record for record, _ in self._records]):
                left = deadline - time.monotonic()
                if left <= 0 or not running():
                    return False
                self._condition.wait(min(left, _LOOK))
            return True

    def _read(self) -> None:
        rest = b""
        with self._copy.open("wb") as copy:
            while data := os.read(self._reader, 65536):
                copy.write(data)
                copy.flush()
                *lines, rest = (rest + data).split(b"\n")
                now = time.monotonic()
                with self._condition:
                    self._records += [(json.loads(line), now) for line in lines]
                    self._condition.notify_all()


def last_happened(read: Sequence[tuple[Record, float]], wanted: Callable[[Record], bool]) -> float | None:
    """When the last wanted event happened, of events and the instants (monotonic seconds) when each was read.

    An event tells its seconds since its process began to count, not when that was: at the latest when it was read,
    less its seconds. On busy cores one event is read long after it happened, but hardly all of them are.
    """
    begun: dict[int, float] = {}
    for record, at in read:
        begun[record["pid"]] = min(begun.get(record["pid"], inf), at - record["t"])
    return max((begun[record["pid"]] + record["t"] for record, _ in read if wanted(record)), default=None)
