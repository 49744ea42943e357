"""A process's output as it is written: through a pipe to a file, whole lines at a time."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import IO

_AT_ONCE = 1 << 20  # bytes; more than a pipe holds


class LogPipe:
    """The reading end of `pipe`, and the `file` it goes to; `follow` closes both.

    `heard` is called with each line, by whoever moves it to the file.
    """

    def __init__(self, pipe: IO[bytes], file: FileIO, heard: Callable[[bytes], None]) -> None:
        self._pipe = pipe
        self._file = file
        self._heard = heard
        self._lock = threading.Lock()
        self._rest = b""  # a line that is not whole yet
        self._at_end = False
        os.set_blocking(pipe.fileno(), False)

    def follow(self) -> None:
        """Move the output to the file as it comes, until no process holds the other end any more."""
        readable = select.poll()
        readable.register(self._pipe, select.POLLIN)
        with self._pipe, self._file:
            while not self._at_end:
                readable.poll()
                self._take()

    def lines(self) -> list[str]:
        """Everything that was written before this call: what is still in the pipe is taken out first."""
        self._take()
        with self._lock:  # of what is just being written to the file, half could be read
            return Path(self._file.name).read_text("utf-8", "replace").splitlines()

    def _take(self) -> None:
        with self._lock:
            if self._at_end:
                return
            try:
                data = os.read(self._pipe.fileno(), _AT_ONCE)
            except BlockingIOError:
                return
            self._at_end = not data
            *lines, self._rest = (self._rest + data).split(b"\n")
            whole = [line + b"\n" for line in lines]
            if self._at_end and self._rest:
                whole.append(self._rest)
            self._file.write(b"".join(whole))
            for line in whole:
                self._heard(line)
