"""The threaded engine as a worker of gunicorn 27.0.1's: on its public base class, and under our master.

What gunicorn's own threaded worker does at a shutdown, and this one does not: it stops accepting, so that whatever the
kernel still queues is reset; it gives every new connection a thread before a byte has come; it closes connections with
a wait of up to 2 s on its main thread; it drops an application's wish to close a connection.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pooldrain.exit_codes import ExitCode
from pooldrain.runtime.listener import (
    ACCEPT_PAUSE,
    BROKEN_PAUSE,
    MOST_CONNECTIONS,
    AcceptExhausted,
    drop_new_connections,
)
from pooldrain.runtime.master.worker import ManagedWorker
from pooldrain.runtime.process.exit import fast_exit, told_in_one_line
from pooldrain.runtime.process.memory import freeze_startup
from pooldrain.runtime.tls import server_context

if TYPE_CHECKING:
    from pooldrain.runtime.startup import Ground
    from pooldrain.shutdown import ShutdownReport, Stop
    from pooldrain_sync.assembly import BuiltService
    from pooldrain_sync.engine.engine import Engine
    from pooldrain_sync.servers.ending import Ending


class DrainWorker(ManagedWorker):
    """The worker: its main thread attends until the runner's shutdown is over, the engine's threads serve."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._service: BuiltService | None = None
        self._engine: Engine | None = None
        self._accepts = True  # False once the end has begun
        self._accept_again_at = 0.0  # monotonic seconds, if not 0: nobody is accepted until then, unless there is room
        self._retires = False  # whether it leaves its service to other workers
        self._cancels = False  # whether that is asked for, and not yet done
        self._tidied_at = 0.0
        self._stop: Stop | None = None
        self._ending: Ending | None = None

    @property
    def service(self) -> BuiltService:
        """The service of this process."""
        assert self._service is not None, "built by load_wsgi"
        return self._service

    @property
    def engine(self) -> Engine:
        """What serves."""
        assert self._engine is not None, "made by run"
        return self._engine

    @property
    def ending(self) -> Ending:
        """What begins with the first signal."""
        assert self._ending is not None, "made by run"
        return self._ending

    # --- start ----------------------------------------------------------------------------------------------

    def load_wsgi(self) -> None:
        """Build and open the service, in this process. A failure ends the worker with one line."""
        with told_in_one_line(self.app.settings.service):
            # After the fork: a master without frameworks has less to tear down when everything waits for its exit.
            from pooldrain_sync.assembly import build

            self._service = self.app.preloaded or build(self.app.settings, self.app.url)
            self.follow(self.service.runner)
            with self.guarded_start():
                self.service.runner.open()

    def run(self) -> None:
        """Serve until a signal has led to the end, then leave the process."""
        from pooldrain.sqla.waits import tell  # as above
        from pooldrain_sync.engine.engine import Engine
        from pooldrain_sync.engine.lookout import run_slots
        from pooldrain_sync.servers.ending import Ending

        listener = self.take_listener()
        engine = self._engine = Engine(
            self.service.app,
            self.service.runner,
            listener,
            threads=self.app.settings.threads,
            slots=run_slots(),
            several=self.app.settings.workers > 1,
            served=self._count,
            http=self.app.settings.http,
            tls=server_context(self.app.settings.certfile, self.app.settings.keyfile),
        )
        listening = self.app.ground.listening(listener)
        runner = self.service.runner
        ending = self._ending = Ending(runner, self.watch, due=self._due, shut_down=self._shut_down, wake=engine.wake)
        tell(engine.slots)
        freeze_startup()
        engine.start()
        self.accepts_requests()  # first: who reads that we listen may send SIGHUP
        for each in listening:
            runner.events.emit(each)
        report = ending.turn((self.watch.fileno(), engine.lookout.woken), self._patience, self._turn)
        fast_exit(ExitCode.DISPOSE_FAILED if report is None else report.exit_code)

    def _count(self) -> None:
        self.has_served(self.service.runner.gate.finished)

    # --- what the runner asks for, in its thread ------------------------------------------------------------

    def drain(self) -> None:
        """From now on requests are refused: by whoever reads them, for which no thread has to be free."""
        self.engine.wake()

    def cancel(self) -> None:
        """From now on no request waits for its client any more, or for a thread: those that do are refused."""
        self.engine.interrupt()
        self._cancels = True
        self.engine.wake()

    def stop(self, step: Stop) -> None:
        """Answer what is queued, close the listener and every connection; return when done."""
        self._stop = step
        self.engine.wake()
        self.ending.over.wait(step.limit + BROKEN_PAUSE - time.monotonic())  # less, unless the loop is broken

    def retire(self) -> None:
        """Leave new clients to the other workers; close, after a while, the connections on which nothing comes."""
        self._retires, self._accepts = True, False
        self.engine.wake()

    def rejoin(self) -> None:
        """Take new clients again: the whole service ends, and they are to be told."""
        self._retires, self._accepts = False, True
        self.engine.wake()

    @property
    def connected(self) -> bool:
        """Whether it has clients."""
        return self._accepts or self.engine.connected > 0 or bool(self.engine.lingering)

    def _shut_down(self) -> ShutdownReport:
        report = self.service.runner.shut_down(self, retiring=self)
        self.leave_report(report)
        return report

    # --- the loop -------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        engine, now = self.engine, time.monotonic()
        self.watch.drain()
        engine.attend()
        self._accept(now)
        self.ending.attend_signals()
        if self.watch.received:
            self.look_again()
        if now >= min(self._tidied_at + 1.0, engine.lingers_until) or self._retires:
            self._tidied_at = now
            self.notify()
            self.mind_master()
            engine.close_idle()
        if self._retires and not self.connected:
            self.service.runner.look_again()
        if self._cancels:
            self._cancels = False
            engine.cut()
        if self._stop is not None:
            self._stop_once_quiet(self._stop)

    def _accept(self, now: float) -> None:
        """Accept, unless the end has begun, or there is no room."""
        engine = self.engine
        if engine.failed is not None:
            raise engine.failed
        if engine.crowd is not None and not self._accept_again_at:
            self._accept_again_at = now + ACCEPT_PAUSE
        if self._accept_again_at and (now >= self._accept_again_at or engine.has_room):
            self._accept_again_at, engine.crowd = 0.0, None
        if self._accepts or self._retires:
            engine.accept(self._accepts and not self._accept_again_at and engine.connected < MOST_CONNECTIONS)
        if self._retires:
            engine.retire()

    def look_again(self) -> None:
        """What the master has to say may have changed."""
        self.service.runner.look_again()

    def _due(self) -> list[str]:
        return self.due_signals(time.monotonic())

    def _patience(self) -> float:
        """How long to wait for events, in seconds."""
        now = time.monotonic()
        instants = [now + self.engine.lookout.patience(), now + (self.patience(now) or 1.0), self.engine.lingers_until]
        if self._accepts and self._accept_again_at > now:
            instants.append(self._accept_again_at)
        if self._stop is not None:
            instants.append(self._stop.deadline)
            instants.append(now + BROKEN_PAUSE / 10)
        if self._retires:
            instants.append(now + BROKEN_PAUSE)
        return max(0.001, min(instants) - now)

    # --- the end --------------------------------------------------------------------------------------------

    def _stop_once_quiet(self, step: Stop) -> None:
        engine = self.engine
        if self._accepts:
            # What comes after this last look stays in the queue, for the other workers or for the master.
            self._accepts = False
            engine.accept(False)
            if self.app.owns_listener:
                drop_new_connections(engine.listener)
            try:
                engine.accept_now()
            except AcceptExhausted as error:  # what is left is for the others, or for the master
                self.service.runner.cannot_accept(str(error))
        engine.close_taken()
        now = time.monotonic()
        stuck = len(self.service.runner.gate.in_flight)  # cut requests whose threads never came back
        if (engine.connected - stuck > 0 or engine.lingering) and now < step.deadline:
            return
        engine.take_over()  # what has arrived by now is read, and so not reset
        if now < step.limit and (engine.connected - engine.idle(now) - stuck > 0 or not engine.close_all()):
            return
        engine.close_all()  # now, and not by the process's end: the report needs a descriptor, too
        self.ending.over.set()


def serve(ground: Ground) -> int:
    """Serve from one process or several, under a master, until a signal has led to the end; the exit code."""
    from pooldrain.runtime.master.master import run_master

    return run_master(ground, DrainWorker, lambda: _build(ground))


def _build(ground: Ground) -> object:
    from pooldrain_sync.assembly import build  # the frameworks: for a master only if it is to preload

    return build(ground.settings, ground.url)
