"""The admin listener's process: forked from the service's first one, before that binds its own address or has threads.

A thread of the master would make each later fork unsafe, and one beside forty busy threads answers late. It ends when
its parent says so or has gone, and with it every process that serves.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pooldrain.admin.collector import Collector
from pooldrain.admin.gathering import Gathering
from pooldrain.admin.reporter import END, Reporter, wake
from pooldrain.admin.server import AdminServer
from pooldrain.lifecycle import Lifecycle
from pooldrain.shutdown import ShutdownReport

logger = logging.getLogger("pooldrain")

# Seconds for which the parent waits for its end, before it kills it.
END_LIMIT = 0.5

# What the private folders are called: then comes the parent's process number. Left when all are killed at once.
FOLDER = "pooldrain-admin-"

# A terminal and a service manager signal every process of a service; this one ends with the last of them.
_OTHERS_SIGNALS = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD")


@dataclass(slots=True)
class Admin:
    """The listener, seen from the service."""

    address: str  # as it is shown
    folder: Path
    pipe: int  # wakes it
    ended: int  # readable once it has ended
    pid: int
    parent: int
    reporter: Reporter | None = None

    def report(self, runner: Lifecycle[Any, Any]) -> None:
        """Have it shown what this process does. Once, in each process that serves."""
        try:
            self.reporter = Reporter(runner, self.folder, self.pipe)
        except OSError as error:  # the service goes on without it
            logger.warning("the admin listener cannot be told of process %d: %s", os.getpid(), error)

    def tell(self) -> None:
        """Log where it is: once, by whichever process is the first to serve."""
        with suppress(OSError):
            (self.folder / "told").touch(exist_ok=False)
            logger.info("admin: %s", self.address)

    def last_words(self, report: ShutdownReport) -> None:
        """The shutdown of this process is complete."""
        if self.reporter is not None:
            self.reporter.end(report)

    def end(self) -> None:
        """End it, and wait for that. In its parent alone."""
        if os.getpid() != self.parent:
            return
        wake(self.pipe, END)
        if not select.select([self.ended], [], [], END_LIMIT)[0]:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)


def start(
    listener: socket.socket,
    gathering: Gathering,
    *,
    names: frozenset[str],
    address: str,
    token: str | None,
    owner: tuple[int, int] | None = None,
    become: Callable[[], None] | None = None,
) -> Admin:
    """Fork the process that serves on this bound socket, which from then on is its own.

    `names`: the hosts that a client may ask for, empty: any. `owner`: user and group that serve, if they are others;
    `become` makes the child that user.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
    if owner is not None:
        os.chown(folder, *owner)
    woken, pipe = os.pipe()
    ended, held = os.pipe()
    os.set_blocking(pipe, False)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        for name in _OTHERS_SIGNALS:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        _close_others(listener.fileno(), woken, held)
        try:
            if become is not None:
                become()
            _serve(listener, gathering, folder, woken, names, token, parent)
        except BaseException:
            logger.exception("the admin listener has failed; the service goes on without it")
        finally:
            os._exit(0)
    for descriptor in (woken, held):
        os.close(descriptor)
    listener.close()
    return Admin(address, folder, pipe, ended, pid, parent)


def _serve(
    listener: socket.socket,
    gathering: Gathering,
    folder: Path,
    woken: int,
    names: frozenset[str],
    token: str | None,
    parent: int,
) -> None:
    gc.freeze()  # what was the parent's is not to be looked through
    collector = Collector(gathering, folder, woken)
    server = AdminServer(listener, collector, names, token)
    threading.Thread(target=server.serve_forever, args=(3600.0,), daemon=True).start()
    while not collector.over and (os.getppid() == parent or gathering.living):
        collector.turn()
    collector.finish()
    shutil.rmtree(folder, ignore_errors=True)  # the parent, which does so as well, may be gone


def _close_others(*kept: int) -> None:
    """Close what belongs to the parent: a listener of its own must not outlive it here."""
    before = 3
    for descriptor in sorted(kept):
        os.closerange(before, descriptor)
        before = descriptor + 1
    os.closerange(before, min(65536, os.sysconf("SC_OPEN_MAX")))
