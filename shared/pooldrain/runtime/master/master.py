"""The master of several workers, for both backends: gunicorn's arbiter, ours where it must be.

What gunicorn 27.0.1's arbiter does at a shutdown, and this one does not: it polls with `sleep(0.1)`, swallows a
second SIGTERM, measures its deadline on the wall clock, and always exits 0. Here `stop` waits on the signal
queue, a second signal is passed on to the workers as SIGQUIT (hurry), a third ends them at once, and the exit
code is the worst of the workers'.

What it does at SIGHUP, and when a worker has served its number of requests: it ends workers before others are
there, all of them at once, and does nothing else until they have ended. Here they are replaced one by one, each when
its successor is ready (`worker` tells how), so that there is never less of the service, and at most one process and
one pool more.

Each worker writes its own shutdown report; the master makes one file of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.sock import TCPSocket, UnixSocket

from pooldrain.exit_codes import ExitCode, by_signal, worst_exit_code
from pooldrain.phases import Phase
from pooldrain.problems import REFUSED
from pooldrain.runtime.listener import cannot_listen, refuse_queued, server_address
from pooldrain.runtime.master.worker import ManagedWorker, MasterApplication, worker_report
from pooldrain.runtime.output.logging import adopt_third_party
from pooldrain.runtime.output.report import write_report
from pooldrain.runtime.process.memory import freeze_startup
from pooldrain.runtime.process.service_manager import ServiceManager
from pooldrain.runtime.process.signals import SHUTDOWN_SIGNALS
from pooldrain.runtime.process.watchdog import MASTER, Watchdog
from pooldrain.runtime.startup import Ground
from pooldrain.service_report import service_report

logger = logging.getLogger("pooldrain")

# Seconds until a worker that could not start, or crashed, is replaced.
RESPAWN_DELAY = 1.0

# Seconds beyond the killing of workers for refusing those who came too late.
REFUSING = 0.1

# Reports of workers that were replaced that are kept for the one report at the end.
KEPT_REPORTS = 100


class Master(Arbiter):
    """The arbiter with a shutdown that waits for events and tells how it ended."""

    app: MasterApplication
    WORKERS: ClassVar[dict[int, ManagedWorker]]  # type: ignore[assignment]  # it has these workers only

    def __init__(self, app: MasterApplication) -> None:
        super().__init__(app)
        self.LISTENERS = []  # type: ignore[misc]  # gunicorn's is shared by the class
        adopt_third_party()  # gunicorn has just set up a log of its own
        self._signal = signal.SIGTERM
        self._exit_code = int(ExitCode.DRAINED)  # the worst so far
        self._workers_seen: list[int] = []  # those that may have left a report
        self._respawn_at = 0.0
        self._refused = 0  # requests that came after the last worker
        self._told_ready = False  # whether the service manager knows that requests are accepted
        self._told_phase = Phase.READY

    def listen_on(self, address: Any, descriptor: int) -> None:
        """Listen on a socket that is bound already. Raises OSError."""
        assert self.log is not None
        kind = UnixSocket if isinstance(address, str) else TCPSocket
        self.LISTENERS.append(kind(address, self.cfg, self.log, fd=descriptor))

    def init_signals(self) -> None:
        """Queue signals, those included that came before."""
        # Python's own handlers run between two instructions, and would wait for the end of a wait that had just begun.
        self._signalled, told = socket.socketpair()
        for end in (self._signalled, told):
            end.setblocking(False)
        signal.set_wakeup_fd(told.detach(), warn_on_full_buffer=False)
        super().init_signals()
        watch = self.app.ground.watch
        twice = watch.received[:1] == [signal.SIGQUIT.name]  # what `handle_quit` knows by itself
        for name in (*watch.received[twice:], *watch.take_ignored()):
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
        """SIGQUIT: a shutdown that does not wait for requests; as if it came twice."""
        self._signal = signal.SIGQUIT
        raise StopIteration

    def wait_for_signals(self, timeout: float = 1.0) -> Iterator[int]:  # type: ignore[override]  # looped over only
        """The signals in the queue, one by one: one that comes behind the first stays there for `stop`."""
        return (number for number in self._signals_within(timeout) if number != self.WAKEUP_REQUEST)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop, tell, and leave with the worst exit code."""
        self.stop()
        if reason:
            logger.error("%s", reason)
        code = worst_exit_code([exit_status, self._exit_code])
        report = self.app.settings.report
        if report is not None:
            self._merge_reports(report, code)
        raise SystemExit(code)

    def stop(self, graceful: bool = True) -> None:
        """Pass the signal on and wait, by events, until every worker has ended or the grace period has."""
        ladder = self.app.settings.shutdown.ladder
        began = time.monotonic()
        watchdog = Watchdog(ladder.grace_period, MASTER)  # not before: a thread and a fork do not go together
        watchdog.exit_code = int(ExitCode.DISPOSE_FAILED)
        watchdog.arm()
        flags = self.app.flags
        flags.only_one = len(self.WORKERS) == 1
        flags.stopping = True
        self._manager.ending(ladder.termination_grace_period)
        first = self._signal if graceful else signal.SIGQUIT
        flags.hurried = first == signal.SIGQUIT
        self.kill_workers(first)
        deadline = began + ladder.graceful_timeout
        received = 2 if flags.hurried else 1
        while self.WORKERS and (left := deadline - time.monotonic()) > 0:
            self._tell_phase()
            for number in self._signals_within(left):
                if number not in SHUTDOWN_SIGNALS:
                    continue
                received += 1
                logger.info("%s received: hurrying %d workers", signal.Signals(number).name, len(self.WORKERS))
                if received >= 3:
                    self.kill_workers(signal.SIGKILL)
                    self._ended_with(by_signal(number))
                else:
                    flags.hurried = True  # two signals that come at once reach a worker in an order of their own
                    self.kill_workers(signal.SIGQUIT)
            self.reap_workers()
        if self.WORKERS:
            logger.error("%d workers outlived the grace period and are killed", len(self.WORKERS))
            self.kill_workers(signal.SIGKILL)
            while self.WORKERS:
                self._reaped(*os.waitpid(-1, 0))
        # Open until now, so that nothing which came after the last worker's last look is reset.
        until = began + ladder.graceful_timeout + REFUSING
        if not self.app.ground.passed:  # else a successor serves who is queued
            self._refused = sum(refuse_queued(listener.sock, REFUSED.raw(), until) for listener in self.LISTENERS)
        if self._refused:
            logger.info("master: %d late requests refused", self._refused)
        self.LISTENERS.clear()

    def _signals_within(self, seconds: float) -> Iterator[int]:
        """Every signal in the queue, after waiting for the first one at most so long, and no longer than a second."""
        self._manager.beat()
        if self.SIG_QUEUE.empty():
            select.select([self._signalled], [], [], min(1.0, max(0.0, seconds)))
        with contextlib.suppress(BlockingIOError):
            while self._signalled.recv(64):
                pass
        with contextlib.suppress(queue.Empty):
            while True:
                yield self.SIG_QUEUE.get_nowait()

    @property
    def _manager(self) -> ServiceManager:
        return self.app.ground.manager

    def _tell_phase(self) -> None:
        """Tell the service manager how far the last of the workers is."""
        order = list(Phase)
        phase = min((worker.flags.phase for worker in self.WORKERS.values()), key=order.index)
        if order.index(phase) > order.index(self._told_phase):
            self._told_phase = phase
            self._manager.entered(phase)

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
        if self.app.flags.stopping:
            self._ended_with(code if code >= 0 else by_signal(-code))
        elif not self.app.flags.ever_ready:
            told = code in (ExitCode.NOT_STARTED, ExitCode.BAD_CONFIGURATION)  # by the worker itself
            reason = "" if told else f"the first worker ended with exit code {code} before it was ready"
            raise HaltServer(reason, code if told else int(ExitCode.NOT_STARTED))
        elif code < 0:
            logger.error("worker %d was killed by %s and is replaced", pid, signal.Signals(-code).name)
        elif code in (ExitCode.NOT_STARTED, ExitCode.BAD_CONFIGURATION) or code not in tuple(ExitCode):
            logger.info("worker %d ended with exit code %d, another one is tried", pid, code)
            self._respawn_at = time.monotonic() + RESPAWN_DELAY
        else:
            logger.info("worker %d retired, exit code %d", pid, code)
            self._ended_with(code)
        self._forget_reports()

    def _ended_with(self, code: int) -> None:
        self._exit_code = worst_exit_code([self._exit_code, code])

    def handle_hup(self) -> None:
        """SIGHUP: replace every worker; the new ones load the application's code anew."""
        if not self.app.flags.ever_ready:
            return  # they have only just loaded it
        same = ", with the code that was preloaded" if self.app.preloaded is not None else ""
        logger.info("SIGHUP received: replacing %d workers, one by one%s", len(self.WORKERS), same)
        for worker in self.WORKERS.values():
            worker.flags.leaving = True

    def handle_usr1(self) -> None:
        """SIGUSR1: gunicorn opens its log files anew; there are none."""
        logger.warning("SIGUSR1 is ignored; there are no log files to open anew")

    def handle_usr2(self) -> None:
        """SIGUSR2: not what gunicorn does, a second master on the same socket: two would not be one service."""
        logger.warning("SIGUSR2 is ignored; SIGHUP loads the application's code anew")

    def manage_workers(self) -> None:
        """Let go whoever has a successor, start whoever is missing.

        The first worker goes ahead: what keeps it from starting would keep all of them, and is told once. Those
        that cannot start are not tried again at once.
        """
        if not self.app.flags.ever_ready:
            if not self.WORKERS:
                self.spawn_worker()
            return
        if not self._told_ready:
            self._told_ready = True
            self._manager.ready(", ".join(str(listener) for listener in self.LISTENERS))
        self._release_workers()
        if time.monotonic() < self._respawn_at:
            return
        missing = self.num_workers - sum(not worker.flags.leaving for worker in self.WORKERS.values())
        room = self.num_workers + 1 - len(self.WORKERS)
        for _ in range(min(missing, room)):
            self.spawn_worker()

    def _release_workers(self) -> None:
        """Let the oldest of those that are to leave go, as many as can be spared."""
        oldest_first = sorted(self.WORKERS.items(), key=lambda item: item[1].age)
        staying = [worker for _, worker in oldest_first if not worker.flags.leaving]
        for worker in staying[: max(0, len(staying) - self.num_workers)]:  # SIGTTOU: one less is wanted
            worker.flags.leaving = True
        serving = [(pid, worker) for pid, worker in oldest_first if worker.flags.ready and not worker.flags.released]
        leaving = [(pid, worker) for pid, worker in serving if worker.flags.leaving]
        for pid, worker in leaving[: max(0, len(serving) - self.num_workers)]:
            worker.flags.released = True
            self.kill_worker(pid, signal.SIGTERM)

    def _forget_reports(self) -> None:
        """Keep the last reports only: workers may be replaced for months."""
        path = self.app.settings.report
        for pid in forgotten(self._workers_seen, self.WORKERS, KEPT_REPORTS):
            self._workers_seen.remove(pid)
            if path is not None:
                worker_report(path, pid).unlink(missing_ok=True)

    def _merge_reports(self, path: Path, exit_code: int) -> None:
        """One report of all workers; none, if none has left one."""
        reports = []
        for pid in self._workers_seen:
            left = worker_report(path, pid)
            with contextlib.suppress(OSError, ValueError):  # a worker that was killed has left none
                reports.append(json.loads(left.read_text(encoding="utf-8")))
                left.unlink()
        if reports:
            write_report(path, service_report(reports, exit_code, self._refused))

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


def forgotten(seen: Sequence[int], living: Collection[int], kept: int) -> list[int]:
    """Of all workers seen, those that have ended, but for the last ones."""
    return [pid for pid in seen if pid not in living][:-kept]


def run_master(ground: Ground, worker_class: type[ManagedWorker], build: Callable[[], object]) -> int:
    """Serve with workers of `worker_class` until a signal; the exit code. Raises StartupError for a port in use.

    `build` makes the service; called here, for all workers, if the user wants that. What it raises is raised.
    """
    settings = ground.settings
    app = MasterApplication(ground, worker_class)
    master = Master(app)
    for (host, _), listener in zip(settings.binds, ground.bind_each(), strict=True):
        port = server_address(listener)[1]
        try:
            master.listen_on(listener.getsockname(), listener.detach())
        except OSError as error:
            raise cannot_listen(host, port, error) from error
    if settings.preload:
        app.preloaded = build()
    freeze_startup()  # or the workers' collections would write to pages that they share with this process
    try:
        master.run()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(ExitCode.NOT_STARTED)
    return int(ExitCode.DRAINED)
