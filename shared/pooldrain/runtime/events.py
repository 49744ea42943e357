"""Where events go: the log, and the transcript file when one is asked for."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from pooldrain.transcript import Event, PhaseEntered

logger = logging.getLogger("pooldrain")


class EventLog:
    """Logs what has a message; appends every event to the transcript.

    `path`: the transcript, None for none. `clock`: monotonic seconds. Appends line by line with one `write`
    on a descriptor opened for appending, so that several processes may share one file.

    The story is that of the process that enters the first phase: what is done by a master that made the application
    before its workers, or by a child that the application forks, is no part of it.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float]) -> None:
        self.detailed = path is not None
        self._clock = clock
        self._started = clock()
        self._owner: int | None = None  # whose story it is; nobody's before the first phase
        self._early: list[tuple[int, bytes]] = []  # what was told before, and by whom
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def emit(self, event: Event) -> None:
        """Take one event. Never raises for a full disk: a shutdown has better things to do."""
        message = event.message()
        if message is not None and logger.isEnabledFor(event.level):
            logger.log(event.level, "%s", message, extra={"event": event.as_dict()})
        if self._file is None:
            return
        pid = os.getpid()
        record = {**event.as_dict(), "t": round(self._clock() - self._started, 6), "pid": pid}
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        if self._owner is None:
            self._early.append((pid, line))
            if isinstance(event, PhaseEntered):
                self._owner = pid
                self._write(b"".join(early for teller, early in self._early if teller == pid))
                self._early.clear()
        elif self._owner == pid:
            self._write(line)

    def _write(self, lines: bytes) -> None:
        assert self._file is not None, "asked before"
        try:
            os.write(self._file, lines)
        except OSError as error:
            logger.error("transcript: %s, no more events are written", error.strerror)
            self._file = None
