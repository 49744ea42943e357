"""A worker of gunicorn's master that runs our uvicorn server: several processes, one meaning of every signal."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any

from gunicorn.workers.base import Worker

from pooldrain.runtime.exit import fast_exit, told_in_one_line
from pooldrain.runtime.master import MasterApplication, worker_report
from pooldrain.runtime.report import write_report
from pooldrain.runtime.signals import SignalWatch
from pooldrain.shutdown import ShutdownReport
from pooldrain.transcript import Listening
from pooldrain_async.servers.uvicorn import UvicornServer
from pooldrain_async.service import build

# Seconds between two signs of life to the master.
HEARTBEAT = 1.0


class DrainWorker(Worker):
    """The worker: one event loop, one uvicorn server."""

    app: MasterApplication

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch = SignalWatch(managed=True)

    def init_signals(self) -> None:
        """Set gunicorn's handlers, with ours for SIGTERM, SIGINT and SIGQUIT."""
        super().init_signals()
        self._watch.install()

    def load_wsgi(self) -> None:
        """Nothing yet: the service is built inside the loop."""

    def run(self) -> None:
        """Serve until a signal has led to the end, then leave the process."""
        with told_in_one_line(self.app.settings.service):
            # Not asyncio.run: it would wait for tasks that swallow their cancellation.
            report = asyncio.new_event_loop().run_until_complete(self._serve())
        path = self.app.settings.report
        if path is not None:
            write_report(worker_report(path, os.getpid()), report.as_dict())
        fast_exit(report.exit_code)

    async def _serve(self) -> ShutdownReport:
        settings = self.app.settings
        service = build(settings, self.app.url)
        heartbeat = asyncio.create_task(self._heartbeat(), name="pooldrain-heartbeat")
        await service.runner.open()
        listener: socket.socket = getattr(self.sockets[0], "sock")  # noqa: B009 - gunicorn's wrapper, typed as a socket
        server = UvicornServer(service.app, service.runner, listener, owns_listener=lambda: self.app.owns_listener)
        self.app.worker_ready()
        port = listener.getsockname()[1]
        report = await server.run_to_end(self._watch, Listening(settings.host, port, settings.server, os.getpid()))
        heartbeat.cancel()
        return report

    async def _heartbeat(self) -> None:
        """Tell the master that we live; an orphan shuts down as if told to."""
        while True:
            self.notify()
            if os.getppid() != self.ppid and not self._watch.received:
                self._watch.handle(signal.SIGTERM)
            await asyncio.sleep(HEARTBEAT)
