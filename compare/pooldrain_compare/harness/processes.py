"""Servers as real processes: start one, learn by event that it accepts, signal it, know when it ended.

Each server is the leader of a process group of its own; leaving the context manager kills that group, so
that nothing this package started outlives it, whatever happened. Times are seconds on the monotonic clock.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pooldrain.admin.process import FOLDER
from pooldrain_compare.harness.log_pipe import LogPipe

START_TIMEOUT = 30.0
KILL_TIMEOUT = 10.0
REAP_TIMEOUT = 0.2


class ServerProcessError(Exception):
    """A server did not start, or did not end in time; the message carries the end of its log."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How and when a process ended."""

    code: int  # as subprocess: negative is the number of the signal that killed it
    at: float  # monotonic, taken by the thread that waited for it
    stragglers: bool  # a process of its group outlived it by REAP_TIMEOUT


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago, for servers that cannot tell which one they took."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def look_inside(admin: str, page: str = "/status") -> dict[str, Any]:
    """What the admin listener at this URL shows on a page of JSON. Raises OSError."""
    with urllib.request.urlopen(admin + page, timeout=REAP_TIMEOUT * 50) as answer:  # noqa: S310 - http://127.0.0.1
        shown: dict[str, Any] = json.load(answer)
        return shown


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of this process without the variables that would configure a backend behind our back."""
    dropped = ("POOLDRAIN_", "GUNICORN_", "UVICORN_", "WEB_CONCURRENCY", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | dict(extra or {})


class ServerProcess:
    """One server process and its group, its log, and the instants that matter.

    Without `address` the server is one of ours: its JSON log says `listening` with host and port. With
    `address` it is asked `GET /` there until it answers. One that is not `awaited` is started, and no more.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        address: tuple[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
        start_timeout: float = START_TIMEOUT,
        awaited: bool = True,
    ) -> None:
        self.argv = list(argv)
        self.log = log
        self.signals: list[tuple[int, float]] = []  # every signal sent, and when
        self.started_at = 0.0
        self._address = address
        self._tells_address = address is None
        self.environment = clean_environment(environment)  # may be added to, until it is started
        self.descriptors: tuple[int, ...] = ()  # further ones that it inherits
        self._start_timeout = start_timeout
        self._awaited = awaited
        self._listening = threading.Event()
        self._ended = threading.Event()
        self._end: Ended | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._pipe: LogPipe | None = None
        self._threads: list[threading.Thread] = []

    # -- context ---------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.started_at = time.monotonic()
        with contextlib.ExitStack() as unless_started:
            log = unless_started.enter_context(self.log.open("wb", buffering=0))  # first: it may be refused
            popen = self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self.environment,
                pass_fds=self.descriptors,
                start_new_session=True,
            )
            unless_started.pop_all()
        assert popen.stdout is not None, "asked for"
        self._pipe = LogPipe(popen.stdout, log, self._heard)
        for target in (self._pipe.follow, partial(self._await_end, popen)):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            self._threads.append(thread)
        try:
            if self._awaited:
                self._await_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    # -- what it is ------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Process id of the leader (gunicorn: the master)."""
        assert self._popen is not None, "the process has not been started"
        return self._popen.pid

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        assert self._address is not None, "the server has not said where it listens"
        return self._address

    @property
    def ended(self) -> Ended | None:
        """How it ended, or None while it runs."""
        return self._end

    def log_lines(self) -> list[str]:
        """Everything that was logged before this call."""
        return [] if self._pipe is None else self._pipe.lines()

    @property
    def admin(self) -> str:
        """Where its admin listener is, as its log tells. Raises ServerProcessError if it has none."""
        for line in self.log_lines():
            if told := re.search(r"admin: (http://[^/\s]+)/", line):
                return told[1]
        raise ServerProcessError(f"{self.argv[2]} has told of no admin listener")

    def log_tail(self, lines: int = 12) -> str:
        """The end of the log, indented, for messages."""
        return "\n".join(f"    {line}" for line in self.log_lines()[-lines:]) or "    (no output)"

    # -- what is done to it ----------------------------------------------------------------------------

    def signal(self, signum: int = signal.SIGTERM) -> float:
        """Send a signal to the leader alone; returns the instant just before it was sent."""
        assert self._popen is not None
        at = time.monotonic()
        self._popen.send_signal(signum)
        self.signals.append((signum, at))
        return at

    def wait(self, timeout: float) -> Ended:
        """Wait for the end; raises ServerProcessError when it does not come in `timeout` seconds."""
        if not self._ended.wait(timeout):
            raise ServerProcessError(f"{self._name} did not end within {timeout:g} s; its log ends:\n{self.log_tail()}")
        self._threads[0].join(KILL_TIMEOUT)  # the log is complete
        assert self._end is not None
        return self._end

    def kill(self) -> None:
        """Kill whatever is left of the process group and reap it. Harmless after a normal end."""
        if self._popen is None:
            return
        send(self._popen.pid, signal.SIGKILL, group=True)
        for thread in self._threads:
            thread.join(KILL_TIMEOUT)
        _group_is_gone(self._popen.pid, KILL_TIMEOUT)
        for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}{self._popen.pid}-*"):  # nobody was left to remove it
            shutil.rmtree(left, ignore_errors=True)

    # -- threads ---------------------------------------------------------------------------------------

    def _heard(self, line: bytes) -> None:
        if self._address is None and b'"listening"' in line:
            self._address = _listening_address(line)
            if self._address is not None:
                self._listening.set()

    def _await_end(self, popen: subprocess.Popen[bytes]) -> None:
        code = popen.wait()
        at = time.monotonic()
        self._end = Ended(code=code, at=at, stragglers=not _group_is_gone(popen.pid, REAP_TIMEOUT))
        self._ended.set()
        self._listening.set()  # nobody waits for the start of what has ended

    # -- start -----------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return " ".join(self.argv[1:5])

    def _await_ready(self) -> None:
        deadline = self.started_at + self._start_timeout
        if self._tells_address:
            self._listening.wait(self._start_timeout)
        else:
            self._await_answer(self.address, deadline)
        if self._ended.is_set():
            self._threads[0].join(KILL_TIMEOUT)
            code = self._end.code if self._end else "?"
            raise ServerProcessError(f"{self._name} ended with {code} instead of starting; its log:\n{self.log_tail()}")
        if self._address is None or time.monotonic() > deadline:
            raise ServerProcessError(
                f"{self._name} did not start within {self._start_timeout:g} s; its log:\n{self.log_tail()}"
            )

    def _await_answer(self, address: tuple[str, int], deadline: float) -> None:
        pause = 0.01
        while not self._ended.is_set() and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=1.0) as probe:
                probe.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                while data := probe.recv(65536):
                    if data.startswith(b"HTTP/1."):
                        return
            self._ended.wait(pause)
            pause = min(pause * 1.5, 0.1)


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def _group_is_gone(group: int, timeout: float) -> bool:
    """Whether no process of the group runs any more, now or after a little while."""
    deadline = time.monotonic() + timeout
    while send(group, 0, group=True) and group_runs(group):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.002)
    return True


def group_runs(group: int) -> bool:
    """Whether a process of this group runs. An orphan that has ended stays until the first process reaps it."""
    return any(found == group and state not in _ENDED for state, found in map(_state, _pids()))


def runs(pid: int) -> bool:
    """Whether this process runs, and has not only not been reaped yet."""
    return _state(pid)[0] not in _ENDED


_ENDED = ("", "Z", "X")


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _state(pid: int) -> tuple[str, int]:
    """Its state, one letter, and its group; an empty state for one that is gone."""
    try:
        state, _, group = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[:3]
    except OSError:
        return "", 0
    return state, int(group)


def _listening_address(line: bytes) -> tuple[str, int] | None:
    try:
        record: Any = json.loads(line)
        if record["event"] == "listening":
            return str(record["host"]), int(record["port"])
    except (ValueError, KeyError, TypeError):
        pass
    return None


def send(pid: int, number: int, *, group: bool = False) -> bool:
    """Signal a process, or every process of a group, that may be gone; whether there was one. Number 0 only asks."""
    try:
        (os.killpg if group else os.kill)(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # of a group: those that are left have ended, and wait to be reaped
        pass
    return True


def limit_descriptors(pids: Iterable[int], room: int) -> dict[int, tuple[int, int]]:
    """Let each of these processes open `room` more file descriptors than it has, at most; the limits it had (Linux)."""
    limits = {}
    for pid in pids:
        highest = max(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir())
        limits[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + room, limits[pid][1]))
    return limits
