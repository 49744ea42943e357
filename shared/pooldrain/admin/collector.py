"""In the admin listener's process: asks every process that serves, and notes who has gone.

One thread does so (`turn`), at least once a second, so that little is lost of one that is killed. Others ask it for a
fresh status, which it waits for no longer than ANSWER_LIMIT: a process that is too busy is shown as it was last seen.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pooldrain.admin.gathering import Gathering
from pooldrain.admin.news import News
from pooldrain.admin.reporter import END, FINAL, SOCKET
from pooldrain.snapshot import ServiceStatus

# Seconds from one look at all processes to the next.
PAUSE = 1.0

# Seconds for which who wants a fresh status waits for it.
ANSWER_LIMIT = 0.15

# Bytes that are read at once.
_CHUNK = 1 << 16


class Question:
    """A connection over which a process is about to answer."""

    def __init__(self, path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.answer = bytearray()
        try:
            self.connection.setblocking(False)
            self.connection.connect(str(path))
        except BaseException:
            self.connection.close()
            raise


class Collector:
    """Everything that is known of the service; `pipe` is where its processes wake us."""

    def __init__(self, gathering: Gathering, folder: Path, pipe: int) -> None:
        self.news = News()
        self.over = False
        self._gathering = gathering
        self._folder = folder
        self._pipe = pipe
        self._questions: dict[str, Question] = {}
        self._answered_at: dict[str, float] = {}
        self._changed = threading.Condition()
        self._woken, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(pipe, selectors.EVENT_READ)
        self._ask_at = self._tell_at = 0.0

    def fresh(self) -> ServiceStatus:
        """The service as it is now, or as it was last seen where nobody answers in time. From any thread.

        What has been answered in time has been told as news, too.
        """
        asked = time.monotonic()
        with suppress(OSError):  # it is being woken, or has come to its end
            self._waker.send(b"f")
        with self._changed:
            self._changed.wait_for(lambda: self._all_since(asked), ANSWER_LIMIT)
            return self._gathering.document(time.monotonic())

    def _all_since(self, asked: float) -> bool:
        if self._ask_at - PAUSE < asked:  # it has not looked yet who there is
            return self.over
        return all(self._answered_at.get(name, 0.0) >= asked for name in {*self._gathering.living, *self._questions})

    def turn(self) -> None:
        """Wait for what comes next, and note it."""
        ready = self._selector.select(max(0.0, self._ask_at - time.monotonic()))
        with self._changed:  # who waits for an answer finds it told
            self._note(ready)
            self._changed.notify_all()

    def _note(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        asks, reads = time.monotonic() >= self._ask_at, False
        for key, _ in ready:
            if key.data is not None:
                self._read(key.data)
                reads = True
                continue
            asks = True
            if key.fileobj == self._pipe:
                told = os.read(self._pipe, _CHUNK)
                self.over = self.over or END in told
                if not told:  # nobody is left who could write
                    self._selector.unregister(self._pipe)
                    self.over = True
            else:
                with suppress(BlockingIOError):
                    self._woken.recv(_CHUNK)
        if reads and not self._questions:  # before anybody is asked anew
            self._tell()
        if asks:
            self._ask()
        if (asks and not self._questions) or time.monotonic() >= self._tell_at:
            self._tell()

    def finish(self) -> None:
        """Tell the last there is to tell: everybody has ended, or is ending."""
        deadline = time.monotonic() + ANSWER_LIMIT
        self._ask()
        for end in (self._woken, self._pipe):
            with suppress(KeyError):
                self._selector.unregister(end)
        while self._questions and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                if key.data is not None:
                    self._read(key.data)
        with self._changed:
            self.over = True
            self._changed.notify_all()
        self._tell(last=True)
        for name in list(self._questions):
            self._close(name)
        for mine in (self._selector, self._woken, self._waker):
            mine.close()

    def _tell(self, *, last: bool = False) -> None:
        self._tell_at = time.monotonic() + PAUSE
        self.news.tell(self._gathering.document(time.monotonic()), last=last)

    def _ask(self) -> None:
        """Ask everybody who is not being asked, and note who has ended."""
        with self._changed:
            for path in self._folder.glob(f"*{SOCKET}"):
                name = path.stem
                if path.with_suffix(FINAL).exists():
                    self._gone(path)
                elif name not in self._questions:
                    try:
                        question = self._questions[name] = Question(path)
                    except BlockingIOError:  # its queue is full
                        continue
                    except OSError:
                        self._gone(path)
                        continue
                    self._selector.register(question.connection, selectors.EVENT_READ, name)
            self._ask_at = time.monotonic() + PAUSE

    def _read(self, name: str) -> None:
        if (question := self._questions.get(name)) is None:
            return
        try:
            while received := question.connection.recv(_CHUNK):
                question.answer += received
        except BlockingIOError:
            return
        except OSError:
            question.answer.clear()
        with self._changed:
            self._close(name)
            with suppress(ValueError):  # it has ended in the middle: found out by the next question
                self._gathering.answered(name, json.loads(question.answer), time.monotonic())
            self._answered_at[name] = time.monotonic()

    def _close(self, name: str) -> None:
        if (question := self._questions.pop(name, None)) is not None:
            self._selector.unregister(question.connection)
            question.connection.close()

    def _gone(self, path: Path) -> None:
        words: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            words = json.loads(path.with_suffix(FINAL).read_text(encoding="utf-8"))
        self._close(path.stem)
        self._gathering.gone(path.stem, words.get("status"), words.get("report"))
        self._answered_at.pop(path.stem, None)
        for left in (path, path.with_suffix(FINAL)):
            left.unlink(missing_ok=True)
