"""waitress, with a drain (patches internals of waitress 3.0.2).

Stock waitress knows no SIGTERM (requests in flight die with the process) and truncates responses on SIGINT.
Here its loop is ours: signal handlers set a flag and pull the trigger; while draining, requests are refused
by threads of their own; a response says close when its headers are built; at the end everything that the
kernel still queues is answered, and no connection is closed with unread bytes.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask

from pooldrain.gate import CLOSE_CONNECTION, CURRENT_RESERVATION, Reservation
from pooldrain.runtime.listener import (
    BACKLOG,
    FIRST_BYTES,
    KEEP_ALIVE,
    LINGER_LIMIT,
    STOP_LIMIT,
    cannot_listen,
    drop_new_connections,
)
from pooldrain.runtime.signals import SignalWatch
from pooldrain.shutdown import ShutdownReport, Stop
from pooldrain.transcript import Listening
from pooldrain_sync.runner import Runner

# Threads that do nothing but refuse while draining.
REFUSING_THREADS = 2

# Queueing for a thread is normal for a busy server, and told nowhere else.
logging.getLogger("waitress.queue").setLevel(logging.ERROR)


class DrainTask(WSGITask):
    """A request, with a way for the gate to have the connection closed after it."""

    _building_header = False

    def build_response_header(self) -> bytes:
        """The response's head."""
        self._building_header = True
        try:
            return super().build_response_header()
        finally:
            self._building_header = False

    def set_close_on_finish(self) -> None:
        """Close after this response; not only because it has no length, as the other servers do not either."""
        headers: dict[str, str] = getattr(self.request, "headers")  # noqa: B009 - typed as an error; it is a request
        wanted = headers.get("CONNECTION", "").lower() == "close"
        if wanted or self.version != "1.1" or not self._building_header:
            super().set_close_on_finish()

    def get_environment(self) -> dict[str, Any]:
        """The WSGI environment."""
        environ: dict[str, Any] = super().get_environment()
        environ[CLOSE_CONNECTION] = self.set_close_on_finish
        # waitress strips leading double slashes, the other servers do not
        environ["PATH_INFO"] = getattr(self.request, "path")  # noqa: B009 - typed as an error; it is a request
        return environ


class DrainChannel(HTTPChannel):
    """A connection: it keeps the gate's promises to its requests, and lingers before it closes."""

    task_class = DrainTask
    server: DrainServer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reservations: deque[Reservation | None] = deque()
        self.lingers_until: float | None = None
        self._first_bytes_until = time.monotonic() + FIRST_BYTES

    @property
    def busy(self) -> bool:
        """Whether something is still to be answered or flushed, or a client has only just connected."""
        owing = self.requests or self.total_outbufs_len or self.will_close or self.close_when_flushed
        return bool(owing) or time.monotonic() < self._first_bytes_until

    def service(self) -> None:
        """Serve one request, in a thread."""
        reservation = self.reservations.popleft()
        token = CURRENT_RESERVATION.set(reservation)
        try:
            super().service()
        finally:
            CURRENT_RESERVATION.reset(token)
            if reservation is not None:
                self.server.runner.release(reservation)

    def readable(self) -> bool:
        """Whether to wait for bytes."""
        return self.lingers_until is not None or super().readable()

    def handle_read(self) -> None:
        """Bytes have come; a lingering channel only throws them away."""
        self._first_bytes_until = 0.0
        if self.lingers_until is None:
            super().handle_read()
        else:
            self.recv(self.adj.recv_bytes)  # closes the channel at the end of the stream

    def handle_close(self) -> None:
        """Close; after a response, half of it first, so that unread bytes do not reset what is on the wire."""
        if self.will_close and self.connected and self.lingers_until is None and not self.total_outbufs_len:
            assert self.socket is not None
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the client was first
            else:
                self.will_close = False
                self.lingers_until = time.monotonic() + LINGER_LIMIT
                return
        super().handle_close()


class DrainServer(TcpWSGIServer):
    """The listener: hands requests to the busy threads, or to the refusing ones."""

    channel_class = DrainChannel

    def __init__(self, app: Any, runner: Runner, listener: socket.socket, threads: int) -> None:
        self.runner = runner
        self._refusing = ThreadedTaskDispatcher()
        dispatcher = ThreadedTaskDispatcher()
        dispatcher.set_thread_count(threads)
        adjustments = Adjustments(
            sockets=[listener],
            threads=threads,
            backlog=BACKLOG,
            connection_limit=10_000,
            channel_timeout=KEEP_ALIVE,
            cleanup_interval=5,
            asyncore_use_poll=True,
            ident="pooldrain",
        )
        self.map: dict[int, Any] = {}  # waitress's name for everything that its loop polls
        sockinfo = (listener.family, listener.type, listener.proto, listener.getsockname())
        super().__init__(
            app, self.map, False, listener, dispatcher=dispatcher, adj=adjustments, sockinfo=sockinfo, bind_socket=False
        )

    def start_refusing(self) -> None:
        """Have threads ready that only refuse: a busy pool must not delay a 503."""
        self._refusing.set_thread_count(REFUSING_THREADS)

    def add_task(self, task: Any) -> None:
        """A channel has a request. Called under the channel's lock, so nothing is answered here."""
        assert isinstance(task, DrainChannel)
        reservation = self.runner.reserve()
        task.reservations.append(reservation)
        dispatcher: ThreadedTaskDispatcher = self.task_dispatcher if reservation is not None else self._refusing
        dispatcher.add_task(task)  # type: ignore[arg-type]  # a channel is a task to waitress

    def accept_all(self) -> None:
        """Accept until the kernel has no more."""
        while (accepted := self.accept()) is not None:
            connection, address = accepted
            self.set_socket_options(connection)
            self.channel_class(self, connection, address, self.adj, map=self.map)

    def drop_new_connections(self) -> None:
        """Have the kernel complete no more connections."""
        assert self.socket is not None
        drop_new_connections(self.socket)

    def close_listener(self) -> None:
        """Close the listening socket only (`close` would close the trigger as well)."""
        self.accepting = False
        wasyncore.dispatcher.close(self)

    @property
    def channels(self) -> list[DrainChannel]:
        """The open connections."""
        return [channel for channel in self.map.values() if isinstance(channel, DrainChannel)]


class WaitressServer:
    """The loop around waitress: serves until the runner's shutdown is over."""

    def __init__(self, app: Any, runner: Runner, listener: socket.socket, threads: int) -> None:
        self._runner = runner
        self._waitress = DrainServer(app, runner, listener, threads)
        self._signals: deque[str] = deque()
        self._stop: Stop | None = None
        self._stopped = threading.Event()
        self._shutdown: threading.Thread | None = None
        self._report: ShutdownReport | None = None

    def serve(self, watch: SignalWatch, listening: Listening) -> ShutdownReport:
        """Serve until a signal has led to the end; the report of it. Raises StartupError."""
        try:
            self._waitress.accept_connections()
        except OSError as error:
            raise cannot_listen(listening.host, listening.port, error) from error
        self._runner.events.emit(listening)
        watch.listen(self._signalled)
        while not self._stopped.is_set():
            wasyncore.poll2(self._patience(), self._waitress.map)
            self._after_poll()
        assert self._shutdown is not None
        self._shutdown.join()
        assert self._report is not None, "the runner's thread died"
        return self._report

    # --- what the runner asks for, in its thread ------------------------------------------------------------

    def drain(self) -> None:
        """From now on requests are refused: keep them off the busy threads."""
        self._waitress.start_refusing()

    def stop(self, step: Stop) -> None:
        """Answer what is queued, close the listener and every connection; return when done."""
        self._stop = step
        self._waitress.pull_trigger()
        self._stopped.wait()

    # --- the loop -------------------------------------------------------------------------------------------

    def _signalled(self, name: str) -> None:
        """In the signal handler: a flag and a wake-up, nothing else."""
        self._signals.append(name)
        self._waitress.pull_trigger()

    def _patience(self) -> float:
        """How long to wait for events, in seconds."""
        instants = [channel.lingers_until for channel in self._waitress.channels if channel.lingers_until is not None]
        if self._stop is not None:
            instants.append(self._stop.deadline)
        return min(1.0, max(0.001, min(instants) - time.monotonic())) if instants else 1.0

    def _after_poll(self) -> None:
        while self._signals:
            if self._runner.signalled(self._signals.popleft()):
                self._shutdown = threading.Thread(target=self._shut_down, name="pooldrain-shutdown")
                self._shutdown.start()
        now = time.monotonic()
        for channel in self._waitress.channels:
            if channel.lingers_until is not None and now >= channel.lingers_until:
                channel.handle_close()
        if self._stop is not None:
            self._stop_once_quiet(self._stop, now)

    def _shut_down(self) -> None:
        try:
            self._report = self._runner.shut_down(self)
        finally:
            self._stopped.set()
            self._waitress.pull_trigger()

    def _stop_once_quiet(self, step: Stop, now: float) -> None:
        waitress = self._waitress
        if waitress.accepting:
            waitress.drop_new_connections()
            waitress.accept_all()
            waitress.close_listener()
        stuck = len(self._runner.gate.in_flight)  # cut requests whose threads never came back
        if len(waitress.channels) > stuck and now < step.deadline:
            return
        wasyncore.poll2(0, waitress.map)  # what has arrived by now is read, and so not reset
        busy = sum(channel.busy for channel in waitress.channels)
        if busy > stuck and now < step.deadline + STOP_LIMIT:
            return
        for channel in waitress.channels:
            wasyncore.dispatcher.close(channel)
        self._stopped.set()
