"""The master of several workers, for both backends: gunicorn's arbiter, ours where it must be.

What gunicorn 27.0.1's arbiter does at a shutdown, and this one does not: it polls with `sleep(0.1)`, swallows a
second SIGTERM, measures its deadline on the wall clock, and always exits 0. Here `stop` waits on the signal
queue, a second signal is passed on to the workers as SIGQUIT (hurry), a third ends them at once, and the exit
code is the worst of the workers'.

Each worker writes its own shutdown report; the master makes one file of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import queue
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.sock import TCPSocket
from gunicorn.workers.base import Worker

from pooldrain.runtime.database_url import DatabaseUrl
from pooldrain.runtime.listener import BACKLOG, KEEP_ALIVE, bind_socket, cannot_listen, refuse_queued
from pooldrain.runtime.logging import adopt_third_party
from pooldrain.runtime.report import write_report
from pooldrain.runtime.settings import Settings
from pooldrain.runtime.signals import SHUTDOWN_SIGNALS
from pooldrain.runtime.startup import Ground
from pooldrain.shutdown import ExitCode, worst_exit_code
from pooldrain.status import REFUSED

logger = logging.getLogger("pooldrain")

# Seconds until a worker that could not start, or crashed, is replaced.
RESPAWN_DELAY = 1.0

# Seconds without a sign of life from a worker's main loop before the master replaces it.
HEARTBEAT_TIMEOUT = 60


class MasterApplication(BaseApplication):
    """What gunicorn asks for its configuration, and what a worker asks for its service."""

    def __init__(self, ground: Ground, worker_class: type[Worker]) -> None:
        self.ground = ground
        self._worker_class = worker_class
        self._shared = mmap.mmap(-1, 2)  # two flags shared with the workers: see below
        super().__init__()

    @property
    def settings(self) -> Settings:
        """The user's settings."""
        return self.ground.settings

    @property
    def url(self) -> DatabaseUrl:
        """The database."""
        return self.ground.url

    def load_config(self) -> None:
        """Fill in gunicorn's configuration; nothing is read from the environment or from files."""
        settings = self.settings
        for name, value in {
            "bind": settings.bind,
            "workers": settings.workers,
            "threads": settings.threads,
            "worker_class": self._worker_class,
            "worker_connections": 10_000,
            "backlog": BACKLOG,
            "keepalive": KEEP_ALIVE,
            "timeout": HEARTBEAT_TIMEOUT,
            "graceful_timeout": max(1, round(settings.shutdown.ladder.graceful_timeout)),
            "control_socket_disable": True,  # an administrative socket nobody asked for
            "proc_name": settings.service,
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Never asked: the workers build their service themselves, after the fork."""
        raise NotImplementedError

    def worker_ready(self) -> None:
        """Called by a worker that accepts requests: the master may start the others."""
        if not self.ever_ready:
            self._shared[0] = 1
            os.kill(os.getppid(), signal.SIGCHLD)  # wakes its loop

    @property
    def ever_ready(self) -> bool:
        """Whether any worker has ever accepted requests."""
        return bool(self._shared[0])

    def stopping(self) -> None:
        """Called by the master: all workers are to end, not just one."""
        self._shared[1] = 1

    @property
    def owns_listener(self) -> bool:
        """Whether a worker that ends is the last to listen: the only one, and not about to be replaced."""
        return bool(self._shared[1]) and self.settings.workers == 1


class Master(Arbiter):
    """The arbiter with a shutdown that waits for events and tells how it ended."""

    app: MasterApplication

    def __init__(self, app: MasterApplication) -> None:
        super().__init__(app)
        self.LISTENERS = []  # type: ignore[misc]  # gunicorn's is shared by the class
        adopt_third_party()  # gunicorn has just set up a log of its own
        self.stopping = False
        self._signal = signal.SIGTERM
        self._exit_codes: list[int] = []
        self._workers_seen: list[int] = []
        self._respawn_at = 0.0
        self._refused = 0  # requests that came after the last worker

    def listen_on(self, address: Any, descriptor: int) -> None:
        """Listen on a socket that is bound already. Raises OSError."""
        assert self.log is not None
        self.LISTENERS.append(TCPSocket(address, self.cfg, self.log, fd=descriptor))

    def init_signals(self) -> None:
        """Queue signals, those included that came before."""
        super().init_signals()
        for name in self.app.ground.watch.received:
            self.SIG_QUEUE.put_nowait(signal.Signals[name])

    def handle_term(self) -> None:
        """SIGTERM: a graceful shutdown."""
        self._signal = signal.SIGTERM
        raise StopIteration

    def handle_int(self) -> None:
        """SIGINT: the same."""
        self._signal = signal.SIGINT
        raise StopIteration

    def handle_quit(self) -> None:
        """SIGQUIT: a shutdown that does not wait for requests."""
        self.SIG_QUEUE.put_nowait(signal.SIGQUIT)
        self.handle_term()

    def wait_for_signals(self, timeout: float = 1.0) -> Iterator[int]:  # type: ignore[override]  # looped over only
        """The signals in the queue, one by one: one that comes behind the first stays there for `stop`."""
        return (number for number in self._signals_within(timeout) if number != self.WAKEUP_REQUEST)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop, tell, and leave with the worst exit code."""
        self.stop()
        if reason:
            logger.error("%s", reason)
        code = worst_exit_code([exit_status, *self._exit_codes])
        report = self.app.settings.report
        if report is not None:
            self._merge_reports(report, code)
        raise SystemExit(code)

    def stop(self, graceful: bool = True) -> None:
        """Pass the signal on and wait, by events, until every worker has ended or the grace period has."""
        self.stopping = True
        self.app.stopping()
        self.kill_workers(self._signal if graceful else signal.SIGQUIT)
        deadline = time.monotonic() + self.app.settings.shutdown.ladder.graceful_timeout
        received = 1
        while self.WORKERS and (left := deadline - time.monotonic()) > 0:
            for number in self._signals_within(left):
                if number not in SHUTDOWN_SIGNALS:
                    continue
                received += 1
                logger.info("%s received: hurrying %d workers", signal.Signals(number).name, len(self.WORKERS))
                if received >= 3:
                    self.kill_workers(signal.SIGKILL)
                    self._exit_codes.append(128 + number)
                else:
                    self.kill_workers(signal.SIGQUIT)
            self.reap_workers()
        if self.WORKERS:
            logger.error("%d workers outlived the grace period and are killed", len(self.WORKERS))
            self.kill_workers(signal.SIGKILL)
            while self.WORKERS:
                self._reaped(*os.waitpid(-1, 0))
        # Open until now, so that nothing which came after the last worker's last look is reset.
        self._refused = sum(refuse_queued(listener.sock, REFUSED.raw()) for listener in self.LISTENERS)
        if self._refused:
            logger.info("master: %d late requests refused", self._refused)
        self.LISTENERS.clear()

    def _signals_within(self, seconds: float) -> Iterator[int]:
        """Every signal in the queue, after waiting for the first one at most so long."""
        with contextlib.suppress(queue.Empty):
            yield self.SIG_QUEUE.get(timeout=seconds)
            while True:
                yield self.SIG_QUEUE.get_nowait()

    def reap_workers(self) -> None:
        """Take note of the workers that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._reaped(pid, status)

    def _reaped(self, pid: int, status: int) -> None:
        worker = self.WORKERS.pop(pid, None)
        if worker is None:
            return
        worker.tmp.close()
        code = os.waitstatus_to_exitcode(status)
        if self.stopping:
            self._exit_codes.append(code if code >= 0 else 128 - code)
        elif not self.app.ever_ready:
            told = code in (ExitCode.NOT_STARTED, ExitCode.BAD_CONFIGURATION)  # by the worker itself
            reason = "" if told else f"the first worker ended with exit code {code} before it was ready"
            raise HaltServer(reason, code if told else int(ExitCode.NOT_STARTED))
        elif code < 0:
            logger.error("worker %d was killed by %s and is replaced", pid, signal.Signals(-code).name)
        else:
            logger.info("worker %d ended with exit code %d and is replaced", pid, code)
            if code in (ExitCode.NOT_STARTED, ExitCode.BAD_CONFIGURATION) or code not in tuple(ExitCode):
                self._respawn_at = time.monotonic() + RESPAWN_DELAY

    def manage_workers(self) -> None:
        """Replace missing workers; not at once, if the last ones could not start.

        The first worker goes ahead: what keeps it from starting would keep all of them, and is told once.
        """
        if time.monotonic() < self._respawn_at:
            return
        if self.app.ever_ready:
            super().manage_workers()
        elif not self.WORKERS:
            self.spawn_worker()

    def _merge_reports(self, path: Path, exit_code: int) -> None:
        """The only worker's report as it is, those of several under `workers`; none, if none was left."""
        reports = []
        for pid in self._workers_seen:
            left = worker_report(path, pid)
            with contextlib.suppress(OSError, ValueError):  # a worker that was killed has left none
                reports.append(json.loads(left.read_text(encoding="utf-8")))
                left.unlink()
        if len(reports) == 1 and self.app.settings.workers == 1:
            write_report(path, reports[0])
        elif reports:
            write_report(path, {"exit_code": exit_code, "refused_by_master": self._refused, "workers": reports})

    def spawn_worker(self) -> int:
        """Fork a worker, and remember it for the report.

        Signals are blocked across the fork: the child has our handlers at first, which would swallow them.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, SHUTDOWN_SIGNALS)
        try:
            pid: int = super().spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SHUTDOWN_SIGNALS)
        self._workers_seen.append(pid)
        return pid


def run_master(ground: Ground, worker_class: type[Worker]) -> int:
    """Serve with workers of `worker_class` until a signal; the exit code. Raises StartupError for a port in use."""
    settings = ground.settings
    app = MasterApplication(ground, worker_class)
    master = Master(app)
    listener = bind_socket(settings.host, settings.port)
    address = listener.getsockname()
    try:
        master.listen_on(address, listener.detach())
    except OSError as error:
        raise cannot_listen(settings.host, address[1], error) from error
    try:
        master.run()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(ExitCode.NOT_STARTED)
    return int(ExitCode.DRAINED)


def worker_report(path: Path, pid: int) -> Path:
    """Where a worker leaves its report for the master."""
    return path.with_name(f"{path.name}.worker-{pid}")
