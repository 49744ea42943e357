"""In a process that serves: one thread that answers each question of the admin listener with a snapshot.

A question is a connection to its Unix socket, and nothing else: the thread needs the interpreter once for each answer,
which matters beside forty others that compute.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pooldrain.lifecycle import Lifecycle
from pooldrain.phases import Phase
from pooldrain.shutdown import ShutdownReport
from pooldrain.snapshot import ProcessStatus

logger = logging.getLogger("pooldrain")

# How the files of the private folder end: the socket to ask at, and the last words.
SOCKET, FINAL = ".sock", ".final"

# Seconds until it tries again to hear a question.
EXHAUSTED_PAUSE = 0.1

# What is written to the listener's pipe: look anew, or come to an end.
LOOK, END = b"l", b"e"


class Reporter:
    """What one process tells of itself. `folder` is private to the service, `pipe` wakes the listener."""

    def __init__(self, runner: Lifecycle[Any, Any], folder: Path, pipe: int) -> None:
        self._runner = runner
        self._pipe = pipe
        self._stem = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._failed = False
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.register_at_fork(after_in_child=listener.close)  # or it would be asked for this process, after its end
        hidden = self._stem.with_suffix(".new")
        listener.bind(str(hidden))
        listener.listen(16)
        hidden.rename(self._stem.with_suffix(SOCKET))  # not before it listens: who finds it may ask
        threading.Thread(target=self._answer, args=(listener,), name="pooldrain-admin", daemon=True).start()
        runner.followers.append(self._entered)

    def _answer(self, listener: socket.socket) -> None:
        while True:
            try:
                asking, _ = listener.accept()
            except OSError:  # no descriptor is left: it would fail again at once
                time.sleep(EXHAUSTED_PAUSE)
                continue
            with asking, suppress(OSError):
                asking.sendall(self._told())

    def _told(self) -> bytes:
        try:
            return json.dumps(self._snapshot()).encode()
        except Exception:
            if not self._failed:
                logger.exception("the admin listener cannot be told of this process")
            self._failed = True
            return b""

    def _snapshot(self) -> ProcessStatus:
        return {**self._runner.snapshot(), "pid": os.getpid()}

    def _entered(self, _: Phase) -> None:
        wake(self._pipe, LOOK)

    def end(self, report: ShutdownReport) -> None:
        """Leave the last words."""
        partial = self._stem.with_suffix(".partial")
        with suppress(OSError):
            partial.write_text(json.dumps({"status": self._snapshot(), "report": report.as_dict()}), encoding="utf-8")
            partial.rename(self._stem.with_suffix(FINAL))
        wake(self._pipe, LOOK)


def wake(pipe: int, word: bytes) -> None:
    """Write to the listener's pipe; it may have gone, or be busy."""
    with suppress(OSError):
        os.write(pipe, word)
