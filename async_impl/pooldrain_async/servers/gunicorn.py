"""A worker of gunicorn's master that runs our uvicorn server: several processes, one meaning of every signal."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from starlette.types import ASGIApp, Receive, Scope, Send

from pooldrain.runtime.listener import BROKEN_PAUSE, Listener
from pooldrain.runtime.master.master import run_master
from pooldrain.runtime.master.worker import ManagedWorker
from pooldrain.runtime.process.exit import fast_exit, told_in_one_line
from pooldrain.runtime.startup import Ground
from pooldrain.transcript import Listening
from pooldrain_async.assembly import BuiltService, build
from pooldrain_async.loops import new_loop
from pooldrain_async.runner import Runner
from pooldrain_async.servers.uvicorn import RetiringServer, serve_to_end

# Seconds between two signs of life to the master.
HEARTBEAT = 1.0


class DrainWorker(ManagedWorker):
    """The worker: one event loop, one uvicorn server."""

    _server: WorkerServer | None = None

    def load_wsgi(self) -> None:
        """Nothing yet: the service is built inside the loop."""

    def run(self) -> None:
        """Serve until a signal has led to the end, then leave the process."""
        with told_in_one_line(self.app.settings.service):
            # Not asyncio.run: it would wait for tasks that swallow their cancellation.
            loop = new_loop(self.app.settings.loop)
            self._server = server = loop.run_until_complete(self._open())
            self.accepts_requests()
            report = serve_to_end(loop, server)
        self.leave_report(report)
        fast_exit(report.exit_code)

    async def _open(self) -> WorkerServer:
        settings = self.app.settings
        service: BuiltService = self.app.preloaded or build(settings, self.app.url)
        self._beating = asyncio.create_task(self._heartbeat(service.runner), name="pooldrain-heartbeat")
        self.follow(service.runner)
        with self.guarded_start():
            await service.runner.open()
        listener = self.take_listener()
        app = service.app if settings.max_requests is None else self._counting(service)
        return WorkerServer(app, service.runner, listener, self.app.ground.listening(listener), self)

    def look_again(self) -> None:
        """What the master has to say may have changed."""
        if self._server is not None:
            self._server.look_again()

    def _counting(self, service: BuiltService) -> ASGIApp:
        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await service.app(scope, receive, send)
            finally:
                self.has_served(service.runner.gate.finished)

        return counted

    async def _heartbeat(self, runner: Runner) -> None:
        """Tell the master that we live, and see whether it does."""
        while True:
            try:
                self.notify()
                self.mind_master()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next beat comes all the same
                runner.failed("the heartbeat", error)
            await asyncio.sleep(HEARTBEAT)


class WorkerServer(RetiringServer):
    """The server of one of several processes, which may leave the listener to the others."""

    def __init__(
        self, app: ASGIApp, runner: Runner, listener: Listener, listening: tuple[Listening, ...], worker: DrainWorker
    ) -> None:
        super().__init__(
            app,
            runner,
            listener,
            listening,
            worker.watch,
            worker.app.settings,
            owns_listener=lambda: worker.app.owns_listener,
        )
        self._worker = worker
        self._told_something = asyncio.Event()  # a signal has come: somebody's, or the master's with a word
        self._attending: asyncio.Task[None] | None = None

    # --- what the runner asks for ---------------------------------------------------------------------------

    @property
    def called_off(self) -> bool:
        """Whether the whole service ends, and not this worker alone."""
        return self._worker.called_off

    # --- the loop -------------------------------------------------------------------------------------------

    def _attend_signals(self) -> None:
        for name in self._watch.take_ignored():
            self._runner.signal_ignored(name)
        if self._watch.received and self._attending is None:
            self._attending = asyncio.create_task(self._begin_when_due(), name="pooldrain-signals")
        self.look_again()

    def look_again(self) -> None:
        """What the master has to say may have changed."""
        self._told_something.set()
        self._runner.look_again()

    async def _begin_when_due(self) -> None:
        """Begin the shutdown as soon as the worker may; a signal that comes later counts at once."""
        while True:
            self._told_something.clear()
            now = time.monotonic()  # one instant: what is not due yet would else not be waited for
            try:
                self._begin(self._worker.due_signals(now))
                patience = self._worker.patience(now) or None
            except Exception as error:  # noqa: BLE001 - whatever it is, the shutdown is to begin
                self.broken(error)
                patience = BROKEN_PAUSE
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._told_something.wait()


def serve(ground: Ground) -> int:
    """Serve from several processes, under a master, until a signal has led to the end; the exit code."""
    return run_master(ground, DrainWorker, lambda: build(ground.settings, ground.url))
