"""Where events go: the log, and the transcript file when one is asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from pooldrain.errors import StartupError
from pooldrain.printable import json_line
from pooldrain.runtime.output.writer import Output, explain, open_for_appending
from pooldrain.transcript import Event, EventsLost, PhaseEntered

logger = logging.getLogger("pooldrain")


class EventLog:
    """Logs what has a message; appends every event to the transcript.

    `path`: the transcript, None for none; StartupError if it cannot be opened. `clock`: monotonic seconds. Appends line
    by line, so that several processes may share one file; events that nobody reads from a pipe are lost (see `output`).

    The story is that of the process that enters the first phase: what is done by a master that made the application
    before its workers, or by a child that the application forks, is no part of it.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float]) -> None:
        self.detailed = path is not None
        self._clock = clock
        self._started = clock()
        self._owner: int | None = None  # whose story it is; nobody's before the first phase
        self._early: list[tuple[int, bytes]] = []  # what was told before, and by whom
        self._file = None if path is None else _transcript(path, self._lost)

    def emit(self, event: Event) -> None:
        """Take one event. Never raises for a full disk: a shutdown has better things to do."""
        message = event.message()
        if message is not None and logger.isEnabledFor(event.level):
            logger.log(event.level, "%s", message, extra={"event": event.as_dict()})
        if self._file is None:
            return
        pid, line = os.getpid(), self._line(event)
        if self._owner is None:
            self._early.append((pid, line))
            if isinstance(event, PhaseEntered):
                self._owner = pid
                self._write(b"".join(early for teller, early in self._early if teller == pid))
                self._early.clear()
        elif self._owner == pid:
            self._write(line)

    def _line(self, event: Event) -> bytes:
        record = {**event.as_dict(), "t": round(self._clock() - self._started, 6), "pid": os.getpid()}
        return (json_line(record) + "\n").encode()

    def _lost(self, events: int) -> bytes:
        return self._line(EventsLost(events))

    def _write(self, lines: bytes) -> None:
        assert self._file is not None, "asked before"
        try:
            self._file.write(lines)
        except OSError as error:
            logger.error("transcript: %s, no more events are written", error.strerror)
            self._file = None


def _transcript(path: Path, lost: Callable[[int], bytes]) -> Output:
    try:
        return Output(open_for_appending(path), lost)
    except OSError as error:
        raise StartupError(f"cannot write the transcript {path}: {explain(error)}") from error
