"""What a master and its workers share: the settings, and what each has to know of the other.

How one worker ends while its service goes on:
1. It is to leave: by a SIGTERM of its own, by the number of its requests, or because its master replaces all of
   them (SIGHUP). It says so (`leaving`), and serves on as before.
2. The master starts a successor and, once that is ready, lets the worker go (`released`, and SIGTERM).
3. The worker retires: it takes no new clients, answers those it has, and shuts down as ever.

A worker that is signalled cannot know at once whether all are to end: a terminal and systemd signal every process
of a service. It gives its master a moment to say so (`stopping`).
"""

from __future__ import annotations

import logging
import mmap
import os
import random
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.workers.base import Worker

from pooldrain.lifecycle import Lifecycle
from pooldrain.phases import Phase
from pooldrain.runtime.listener import BACKLOG, MOST_CONNECTIONS, Listener, bind_text, joined, keep_from_children
from pooldrain.runtime.options.settings import Settings
from pooldrain.runtime.output.report import write_report
from pooldrain.runtime.process.signals import SignalWatch
from pooldrain.runtime.process.watchdog import WORKER, Watchdog
from pooldrain.runtime.startup import Ground
from pooldrain.shutdown import ShutdownReport
from pooldrain.sqla.database_url import DatabaseUrl

logger = logging.getLogger("pooldrain")

# Seconds without a sign of life from a worker's main loop before the master replaces it.
HEARTBEAT_TIMEOUT = 60

# Seconds in which a master, told to end together with its workers, says so to them.
MASTERS_WORD = 0.2

# Seconds for which a worker that was told to end waits for a successor that does not come.
SUCCESSOR_LIMIT = 15.0


# Where a worker's flags have its phase, and the phases by number.
_PHASE = 3
_PHASES = tuple(Phase)


class Flag:
    """A flag that processes share, as an attribute of a class with `memory`."""

    def __init__(self, place: int) -> None:
        self._place = place

    def __get__(self, owner: SharedFlags, kind: type[SharedFlags]) -> bool:
        return bool(owner.memory[self._place])

    def __set__(self, owner: SharedFlags, value: bool) -> None:
        owner.memory[self._place] = value


class SharedFlags:
    """Flags that this process and those forked from it share."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)


class ServiceFlags(SharedFlags):
    """What is true of all workers."""

    ever_ready = Flag(0)  # one of them has accepted requests
    stopping = Flag(1)  # all of them are to end
    only_one = Flag(2)  # and there was only one when this began
    hurried = Flag(3)  # without waiting for requests


class WorkerFlags(SharedFlags):
    """What is true of one worker."""

    ready = Flag(0)  # it accepts requests
    leaving = Flag(1)  # it is to be replaced
    released = Flag(2)  # its successor is ready

    @property
    def phase(self) -> Phase:
        """The phase it is in."""
        return _PHASES[self.memory[_PHASE]]

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self.memory[_PHASE] = _PHASES.index(phase)


class MasterApplication(BaseApplication):
    """What gunicorn asks for its configuration, and what a worker asks for its service."""

    def __init__(self, ground: Ground, worker_class: type[ManagedWorker]) -> None:
        self.ground = ground
        self.flags = ServiceFlags()
        self.preloaded: Any = None  # the service, if it is made before the workers are
        self._worker_class = worker_class
        super().__init__()

    @property
    def settings(self) -> Settings:
        """The user's settings."""
        return self.ground.settings

    @property
    def url(self) -> DatabaseUrl | None:
        """The database of the service's own pool; None if it has none."""
        return self.ground.url

    def load_config(self) -> None:
        """Fill in gunicorn's configuration; nothing is read from the environment or from files."""
        settings = self.settings
        for name, value in {
            "bind": [bind_text(host, port) for host, port in settings.binds],
            "workers": settings.workers,
            "threads": settings.threads,
            "worker_class": self._worker_class,
            "worker_connections": MOST_CONNECTIONS,
            "backlog": BACKLOG,
            "timeout": HEARTBEAT_TIMEOUT,
            "graceful_timeout": max(1, round(settings.shutdown.ladder.graceful_timeout)),
            "control_socket_disable": True,  # an administrative socket nobody asked for
            "proc_name": settings.service,
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Never asked: the workers build their service themselves, after the fork."""
        raise NotImplementedError

    @property
    def owns_listener(self) -> bool:
        """Whether a worker that ends is the last to listen."""
        return self.flags.stopping and self.flags.only_one and not self.ground.passed


class ManagedWorker(Worker):
    """What a worker of either backend has to do with its master."""

    app: MasterApplication

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flags = WorkerFlags()
        self.watch = SignalWatch(managed=True)
        self._signalled_at: float | None = None
        self._told = 0  # how many signals its shutdown knows of
        settings = self.app.settings
        self._most_requests: int | None = None
        if settings.max_requests is not None:
            # Here, in the master: the workers' generators would all start alike.
            self._most_requests = settings.max_requests + random.randint(0, settings.max_requests_jitter)  # noqa: S311

    def init_signals(self) -> None:
        """Set gunicorn's handlers, with ours for the signals that end a process."""
        super().init_signals()
        self.watch.install()

    def take_listener(self) -> Listener:
        """The listening socket; from now on children of this process do not have it."""
        listener = joined([getattr(each, "sock") for each in self.sockets])  # noqa: B009 - gunicorn's wrappers
        keep_from_children(listener)
        return listener

    @contextmanager
    def guarded_start(self) -> Generator[None]:
        """End the process if it is told to end while its start hangs."""
        watchdog = Watchdog(self.app.settings.shutdown.ladder.grace_period, WORKER)
        self.watch.listen(watchdog.arm)
        try:
            yield
        finally:
            watchdog.disarm()

    # --- what the master learns -----------------------------------------------------------------------------

    def accepts_requests(self) -> None:
        """Tell that requests are accepted: the master may start, or let go, others."""
        self.flags.ready = self.app.flags.ever_ready = True
        self._wake_master()

    def follow(self, runner: Lifecycle[Any, Any]) -> None:
        """Let master and admin listener know of what becomes of this process."""
        runner.followers.append(self.entered)
        self.app.ground.show(runner)

    def entered(self, phase: Phase) -> None:
        """Tell the master of a phase."""
        self.flags.phase = phase
        if self.app.flags.stopping:
            self._wake_master()

    def has_served(self, requests: int) -> None:
        """Take note of how many requests are finished; after as many as the user allows it is to be replaced."""
        if self._most_requests is not None and requests >= self._most_requests and not self.flags.leaving:
            logger.info("worker %d has served %d requests and is to be replaced", os.getpid(), requests)
            self._leave()

    def leave_report(self, report: ShutdownReport) -> None:
        """Write the report to where the master looks for it, and the admin listener."""
        self.app.ground.last_words(report)
        path = self.app.settings.report
        if path is not None:
            write_report(worker_report(path, os.getpid()), report.as_dict())

    def _leave(self) -> None:
        self.flags.leaving = True
        self._wake_master()

    def _wake_master(self) -> None:
        if not self._orphaned:
            os.kill(self.ppid, signal.SIGCHLD)

    # --- what the master says -------------------------------------------------------------------------------

    @property
    def called_off(self) -> bool:
        """Whether nobody takes over its clients: the whole service ends, and its sockets with it."""
        return self._all_end and not self.app.ground.passed

    @property
    def _all_end(self) -> bool:
        """Whether the whole service ends, and not this worker alone."""
        return self.app.flags.stopping or self._orphaned

    @property
    def _orphaned(self) -> bool:
        return os.getppid() != self.ppid

    def mind_master(self) -> None:
        """See whether the master lives; an orphan shuts down as if told to. To be called about every second."""
        if self._orphaned:
            if not self.watch.received:
                self.watch.handle(signal.SIGTERM)
            self.look_again()

    def look_again(self) -> None:
        """What the master has to say may have changed."""
        raise NotImplementedError

    def patience(self, now: float) -> float:
        """Seconds (`now` is monotonic) for which the worker goes on as before; 0: its shutdown begins."""
        if not self.watch.received:
            return float("inf")
        if self._signalled_at is None:
            self._signalled_at = now
        if self._told or self._all_end or self.flags.released or len(self.watch.received) > 1:
            return 0.0
        if not self.flags.leaving:
            if (left := self._signalled_at + MASTERS_WORD - now) > 0:
                return left
            logger.info("worker %d is to end, and waits for its successor", os.getpid())
            self._leave()
        return max(0.0, self._signalled_at + SUCCESSOR_LIMIT - now)

    def due_signals(self, now: float) -> list[str]:
        """The signals that the shutdown is to be told of now, each once; none while the worker goes on as before."""
        if self.patience(now) > 0:
            return []
        received = list(self.watch.received)
        if self.app.flags.hurried and len(received) == 1:
            received.append(signal.SIGQUIT.name)
        due = received[self._told :]
        self._told += len(due)
        if due and not self._all_end:
            self.flags.released = True
            self._leave()
        return due


def worker_report(path: Path, pid: int) -> Path:
    """Where a worker leaves its report for the master."""
    return path.with_name(f"{path.name}.worker-{pid}")
