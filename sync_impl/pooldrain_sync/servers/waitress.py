"""waitress, with a drain (patches internals of waitress 3.0.2).

Stock waitress knows no SIGTERM (requests in flight die with the process) and truncates responses on SIGINT.
Here its loop is ours: signal handlers set a flag and pull the trigger; while draining, requests are refused
by threads of their own; a response says close when its headers are built; at the end everything that the
kernel still queues is answered, and no connection is closed with unread bytes.

waitress reads a body before a thread sees its request, and keeps what a client has not taken yet of a response
when the thread is done with it. A request is in flight for both of these times as well, as on the other servers.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.utilities import BadRequest

from pooldrain.answers import Answer
from pooldrain.exit_codes import ExitCode
from pooldrain.gate import CLIENT, CLOSE_CONNECTION, CURRENT_RESERVATION, Reservation
from pooldrain.in_flight import InFlightRequest
from pooldrain.problems import CUT, INTERNAL_ERROR, REFUSED, invalid_request
from pooldrain.runtime.listener import (
    ACCEPT_BATCH,
    ACCEPT_PAUSE,
    BACKLOG,
    BROKEN_PAUSE,
    FIRST_BYTES,
    KEEP_ALIVE,
    LINGER_LIMIT,
    REFUSING_THREADS,
    AcceptExhausted,
    accepted,
    cannot_listen,
    drop_new_connections,
    has_arrived,
    refuse_queued,
)
from pooldrain.runtime.process.signals import SignalWatch
from pooldrain.runtime.process.watchdog import Watchdog
from pooldrain.runtime.startup import Ground
from pooldrain.shutdown import ShutdownReport, Stop
from pooldrain.transcript import Listening
from pooldrain_sync.assembly import build
from pooldrain_sync.middleware import readable
from pooldrain_sync.runner import Runner

logger = logging.getLogger("pooldrain")

# Queueing for a thread is normal for a busy server, and told nowhere else.
logging.getLogger("waitress.queue").setLevel(logging.ERROR)


class DrainParser(HTTPRequestParser):
    """A request as it comes: the gate learns of it when its head is complete, if its body is not."""

    path: str
    admitted: InFlightRequest | None = None
    answer: Answer | None = None  # what it gets without being served

    def __init__(self, adj: Adjustments, channel: DrainChannel) -> None:
        super().__init__(adj)
        self._channel = channel

    def received(self, data: bytes) -> int:
        """Take bytes; how many of them belong to this request."""
        consumed: int = super().received(data)
        waits = self.headers_finished and not self.completed
        runner = self._channel.server.runner
        counted = waits and self.path not in runner.probes.uncounted
        if counted and self.admitted is None and not self._channel.requests:
            given_id = self.headers.get("X_REQUEST_ID")
            self.admitted = runner.admit(self.method, readable(self.path), given_id)
            if self.admitted is None:
                self.complete_with(REFUSED)
        return consumed

    @property
    def method(self) -> str:
        """GET, POST ... Empty if the head was not valid."""
        return str(getattr(self, "command", "")).upper()

    def complete_with(self, answer: Answer) -> None:
        """Wait for no more of it, and do not serve it."""
        self.answer = answer
        self.error = BadRequest("not served")
        self.expect_continue = False
        self.completed = True


class DrainErrorTask(ErrorTask):
    """The answer to a request that is not served: as the other servers give it."""

    request: Any  # a DrainParser

    def execute(self) -> None:
        """Send it."""
        self.version = "1.1"
        request: DrainParser = self.request
        answer = request.answer or _explanation(request.error)
        if request.admitted is not None:
            request.admitted.status = answer.status
        self.status = answer.status_line
        self.response_headers = list(answer.headers)
        self.set_close_on_finish()
        self.write(b"" if request.method == "HEAD" else answer.body)


class DrainTask(WSGITask):
    """A request that is served: the gate's idea of its client."""

    request: Any  # a DrainParser
    channel: DrainChannel
    interrupted = False
    left = False  # what has not come whole is not served
    _building_header = False

    def __init__(self, channel: DrainChannel, request: DrainParser) -> None:
        super().__init__(channel, request)  # type: ignore[arg-type]  # typed as an error
        channel.serves(self)

    @property
    def admitted(self) -> InFlightRequest | None:
        """The request, if its body came after its head."""
        admitted: InFlightRequest | None = self.request.admitted
        return admitted

    def execute(self) -> None:
        """Serve it."""
        try:
            super().execute()
        finally:
            self.environ = None  # the two know each other, and would wait for the garbage collector

    def when_sent(self, done: Callable[[], None]) -> None:
        """At once, if the channel has nothing to send any more."""
        self.channel.when_sent(self, done)

    def answer_instead(self, response: bytes) -> bool:
        """Answer in place of the thread."""
        return self.channel.answer_instead(response)

    def broken_off(self) -> Exception:
        """What to raise where the response has to be broken off."""
        return ClientDisconnected()

    def sendable(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """The body as it is."""
        return body

    def build_response_header(self) -> bytes:
        """The response's head."""
        self._building_header = True
        try:
            return super().build_response_header()
        finally:
            self._building_header = False

    def set_close_on_finish(self) -> None:
        """Close after this response; not only because it has no length, as the other servers do not either."""
        wanted = self.request.headers.get("CONNECTION", "").lower() == "close"
        if wanted or self.version != "1.1" or not self._building_header:
            super().set_close_on_finish()

    def get_environment(self) -> dict[str, Any]:
        """The WSGI environment."""
        environ: dict[str, Any] = super().get_environment()
        environ[CLIENT] = self
        environ[CLOSE_CONNECTION] = self.set_close_on_finish
        environ["PATH_INFO"] = self.request.path  # waitress strips leading double slashes, the other servers do not
        return environ


def _explanation(error: Any) -> Answer:
    """The answer to one of waitress's errors: the application's fault, which is in the log, or the client's."""
    if error.code == 500:
        return INTERNAL_ERROR
    logger.info("invalid request refused: %s", error.body)
    return invalid_request(error.code)


class DrainChannel(HTTPChannel):
    """A connection: it keeps the gate's promises to its requests, and lingers before it closes."""

    task_class = DrainTask
    error_task_class = DrainErrorTask
    server: DrainServer
    request: DrainParser | None
    requests: list[Any]  # of DrainParser
    requests_lock: threading.Lock

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reservations: deque[Reservation | None] = deque()
        self._first_bytes_until = time.monotonic() + FIRST_BYTES
        self._serving: DrainTask | None = None
        self._unsent: list[tuple[DrainTask, Callable[[], None]]] = []
        self._begun = False  # some of the current answer has been handed over
        self._answered_for = False

    def parser_class(self, adj: Adjustments) -> DrainParser:  # type: ignore[override]  # called like the class it is
        """What reads the next request."""
        return DrainParser(adj, self)

    @property
    def busy(self) -> bool:
        """Whether something is still to be answered or flushed, or a client has only just connected."""
        owing = self.requests or self.total_outbufs_len or self.will_close or self.close_when_flushed
        return bool(owing) or time.monotonic() < self._first_bytes_until

    def service(self) -> None:
        """Serve one request, in a thread."""
        request: DrainParser = self.requests[0]
        reservation = self.reservations.popleft()
        token = CURRENT_RESERVATION.set(reservation)
        self._begun = False
        try:
            super().service()
        finally:
            CURRENT_RESERVATION.reset(token)
            if reservation is not None:
                self.server.runner.release(reservation)
            self._finish_unserved(request)

    def serves(self, task: DrainTask) -> None:
        """A thread begins to serve a request."""
        self._serving = task

    def write_soon(self, data: Any) -> int:
        """Send, from a thread; raises ClientDisconnected."""
        with self.outbuf_lock:
            if self._answered_for:
                raise ClientDisconnected
            self._begun = True
            written: int = super().write_soon(data)
        return written

    def when_sent(self, task: DrainTask, done: Callable[[], None]) -> None:
        """Call `done` when nothing is left to be sent."""
        with self.outbuf_lock:
            if self.connected and self.total_outbufs_len:
                self._unsent.append((task, done))
                return
        done()

    def answer_instead(self, response: bytes) -> bool:
        """Answer for a thread that does not, and close; False if it has begun to answer."""
        with self.outbuf_lock:
            if self._begun or self._answered_for or not self.connected:
                return False
            self._answered_for = True
            self.outbufs[-1].append(response)
            self.total_outbufs_len += len(response)
            self._flush_some(do_close=False)
            self.close_when_flushed = True
        self.server.pull_trigger()
        return True

    def interrupt(self) -> None:
        """Wait no longer for this client to send the rest of a body, or to take what is buffered for it."""
        request = self.request
        if request is not None and request.admitted is not None:
            with self.requests_lock:
                request.complete_with(CUT)
                self.request = None
                self.requests.append(request)
                self.server.add_task(self)
        with self.outbuf_lock:
            if self.connected and self.total_outbufs_len:
                self._flush_some(do_close=False)
            untaken = [task for task, _ in self._unsent] if self.total_outbufs_len else []
            if self.total_outbufs_len and self.requests and self._serving is not None:
                untaken.append(self._serving)
            for task in untaken:
                task.interrupted = True
        if untaken:
            super().handle_close()
            self._tell_sent()

    def _flush_some(self, do_close: bool = True) -> bool | None:
        """Hand over to the kernel what it takes."""
        flushed: bool | None = super()._flush_some(do_close)  # type: ignore[misc]  # the stubs do not know it
        if self._unsent and not self.total_outbufs_len:
            self._tell_sent()
        return flushed

    def _tell_sent(self) -> None:
        with self.outbuf_lock:
            sent, self._unsent = self._unsent, []
        for _, done in sent:
            done()

    def _finish_unserved(self, request: DrainParser | None) -> None:
        """Tell the gate of the end of a request that it never got to see again."""
        admitted = None if request is None else request.admitted
        if admitted is not None and admitted.client is None and not admitted.ended:
            self.server.runner.finish(admitted)

    def handle_read(self) -> None:
        """Bytes have come; a lingering channel only throws them away."""
        self._first_bytes_until = 0.0
        if self not in self.server.lingering:
            super().handle_read()
        else:
            self.recv(self.adj.recv_bytes)  # closes the channel at the end of the stream

    def handle_close(self) -> None:
        """Close; after a response, half of it first, so that unread bytes do not reset what is on the wire."""
        lingering = self.server.lingering
        if self.will_close and self.connected and self not in lingering and not self.total_outbufs_len:
            assert self.socket is not None
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the client was first
            else:
                self.will_close = False
                lingering[self] = time.monotonic() + LINGER_LIMIT
                vars(self)["readable"] = _always  # the loop asks every channel before every wait
                return
        super().handle_close()
        lingering.pop(self, None)
        self._tell_sent()
        self._finish_unserved(self.request)


def _always() -> bool:
    return True


class DrainServer(TcpWSGIServer):
    """The listener: hands requests to the busy threads, or to the refusing ones."""

    channel_class = DrainChannel

    def __init__(self, app: Any, runner: Runner, listener: socket.socket, threads: int) -> None:
        self.runner = runner
        self._refusing = ThreadedTaskDispatcher()
        # A thread for each probe's path, from its first one on: they are answered whatever the others do.
        self._probes = {path: ThreadedTaskDispatcher() for path in runner.probes.uncounted}
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
        self.lingering: dict[DrainChannel, float] = {}  # until when
        self.accept_again_at = 0.0  # monotonic seconds, if not 0; nothing is accepted until then
        self._crowd = 0  # or until there are fewer connections than this
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
        request: DrainParser = task.requests[0]
        served = request.admitted is not None and request.answer is None
        probe = None if served or request.error else self._probes.get(request.path)
        reservation = None if served or probe is not None else self.runner.reserve()
        task.reservations.append(reservation)
        busy = served or reservation is not None
        dispatcher: ThreadedTaskDispatcher = probe or (self.task_dispatcher if busy else self._refusing)
        if probe is not None:
            probe.set_thread_count(1)
        dispatcher.add_task(task)  # type: ignore[arg-type]  # a channel is a task to waitress

    def refuse_waiting(self) -> None:
        """Have the requests that wait for a thread refused."""
        dispatcher: ThreadedTaskDispatcher = self.task_dispatcher
        with dispatcher.lock:
            waiting: list[Any] = list(dispatcher.queue)
            dispatcher.queue.clear()
        for channel in waiting:
            reservation = channel.reservations.popleft()
            if reservation is not None:
                self.runner.release(reservation)
            if channel.requests[0].admitted is not None:
                channel.requests[0].complete_with(REFUSED)  # the application has not seen it
            self.add_task(channel)

    def maintenance(self, now: float) -> None:
        """Close the connections on which nothing has come for a while, and on which nothing has just arrived."""
        expired = now - self.adj.channel_timeout
        for channel in self.channels:
            idle = not channel.requests and channel.last_activity < expired
            if idle and channel.socket is not None and not has_arrived(channel.socket.fileno()):
                channel.will_close = True

    def readable(self) -> bool:
        """Whether to accept connections. Asked before every wait."""
        wanted: bool = super().readable()  # which is also where waitress looks for connections that have expired
        if wanted and self.accept_again_at:
            return time.monotonic() >= self.accept_again_at or len(self.map) < self._crowd
        return wanted

    def handle_accept(self) -> None:
        """Accept a batch of connections; none for a while, if there is no room for them."""
        try:
            self._accept(ACCEPT_BATCH)
            self.accept_again_at = 0.0
            self.runner.can_accept()
        except AcceptExhausted as error:
            self.runner.cannot_accept(str(error))
            self.accept_again_at = time.monotonic() + ACCEPT_PAUSE
            self._crowd = len(self.map)

    def _accept(self, limit: int) -> None:
        assert self.socket is not None
        for connection, address in accepted(self.socket, limit):
            with suppress(OSError):  # it has left
                self.set_socket_options(connection)
            self.channel_class(self, connection, address, self.adj, map=self.map)

    def handle_error(self) -> None:
        """The listener is broken: that is for the loop to know. Called while the exception is handled."""
        error = sys.exc_info()[1]
        assert error is not None
        raise error

    def accept_all(self) -> None:
        """Accept until the kernel has no more, and then nothing more."""
        assert self.socket is not None
        drop_new_connections(self.socket)
        self.accepting = False
        self.del_channel()  # `close` would close the trigger as well
        try:
            self._accept(BACKLOG)
        except AcceptExhausted as error:
            self.runner.cannot_accept(str(error))
            return  # what is left is refused when there is room again
        self.socket.close()

    def refuse_queued(self) -> None:
        """Answer what there was no room for."""
        assert self.socket is not None
        if self.socket.fileno() >= 0:
            refuse_queued(self.socket, REFUSED.raw())

    @property
    def channels(self) -> list[DrainChannel]:
        """The open connections."""
        return [channel for channel in self.map.values() if isinstance(channel, DrainChannel)]


class SignalDispatcher(wasyncore.file_dispatcher):
    """What wakes the loop when a signal has come."""

    def __init__(self, watch: SignalWatch, attend: Callable[[], None], map: dict[int, Any]) -> None:  # noqa: A002 - its
        super().__init__(watch, map)  # type: ignore[arg-type]  # typed as a file; its descriptor is all that counts
        self._watch = watch
        self._attend = attend

    def writable(self) -> bool:
        """There is nothing to write."""
        return False

    def handle_read(self) -> None:
        """A wake-up."""
        self._watch.drain()
        self._attend()


class WaitressServer:
    """The loop around waitress: serves until the runner's shutdown is over."""

    def __init__(self, app: Any, runner: Runner, listener: socket.socket, threads: int, watchdog: Watchdog) -> None:
        self._runner = runner
        self._waitress = DrainServer(app, runner, listener, threads)
        self._watchdog = watchdog
        self._told = 0  # how many signals the runner knows of
        self._cancels = False  # whether that is asked for, and not yet done
        self._stop: Stop | None = None
        self._stopped = threading.Event()
        self._shutdown: threading.Thread | None = None
        self._report: ShutdownReport | None = None

    def serve(self, watch: SignalWatch, listening: Listening) -> ShutdownReport:
        """Serve until a signal has led to the end; the report of it. Raises StartupError."""
        self._watchdog.exit_code = ExitCode.DISPOSE_FAILED  # if nothing better is known
        try:
            self._waitress.accept_connections()
        except OSError as error:
            raise cannot_listen(listening.host, listening.port, error) from error
        self._runner.events.emit(listening)
        SignalDispatcher(watch, lambda: self._attend_signals(watch), self._waitress.map)
        self._attend_signals(watch)
        while not self._stopped.is_set():
            try:
                wasyncore.poll2(self._patience(), self._waitress.map)
                self._after_poll()
            except Exception as error:  # noqa: BLE001 - whatever it is, what it serves is to be ended in order
                self._broken(watch, error)
        assert self._shutdown is not None
        self._shutdown.join()
        assert self._report is not None, "the runner's thread died"
        self._watchdog.exit_code = self._report.exit_code
        return self._report

    # --- what the runner asks for, in its thread ------------------------------------------------------------

    def drain(self) -> None:
        """From now on requests are refused: keep them off the busy threads."""
        self._waitress.start_refusing()

    def cancel(self) -> None:
        """From now on no request waits for its client any more, or for a thread: those that do are refused."""
        self._cancels = True
        self._waitress.pull_trigger()

    def stop(self, step: Stop) -> None:
        """Answer what is queued, close the listener and every connection; return when done."""
        self._stop = step
        self._waitress.pull_trigger()
        self._stopped.wait(step.limit + BROKEN_PAUSE - time.monotonic())  # less, unless the loop is broken

    # --- the loop -------------------------------------------------------------------------------------------

    def _broken(self, watch: SignalWatch, error: Exception) -> None:
        """A turn has failed: tell it, and end in order, which the turns that still succeed help with."""
        self._runner.failed("the server's loop", error)
        if not watch.received:
            watch.handle(signal.SIGTERM)
        with suppress(Exception):
            self._attend_signals(watch)
        self._stopped.wait(BROKEN_PAUSE)

    def _attend_signals(self, watch: SignalWatch) -> None:
        for name in watch.take_ignored():
            self._runner.signal_ignored(name)
        for name in watch.received[self._told :]:
            self._told += 1
            self._runner.signalled(name)
        if self._told and self._shutdown is None:
            shutdown = threading.Thread(target=self._shut_down, name="pooldrain-shutdown")
            shutdown.start()  # if there is no room for it: at the next turn
            self._shutdown = shutdown

    def _patience(self) -> float:
        """How long to wait for events, in seconds."""
        now = time.monotonic()
        instants = [now + 1.0, *self._waitress.lingering.values()]
        if self._waitress.accept_again_at > now:
            instants.append(self._waitress.accept_again_at)
        if self._stop is not None:
            instants.append(self._stop.deadline)
        return max(0.001, min(instants) - now)

    def _after_poll(self) -> None:
        now = time.monotonic()
        for channel, until in list(self._waitress.lingering.items()):
            if now >= until:
                channel.handle_close()
        if self._cancels:
            self._cancels = False
            self._waitress.refuse_waiting()
            for channel in self._waitress.channels:
                channel.interrupt()
        if self._stop is not None:
            self._stop_once_quiet(self._stop, now)

    def _shut_down(self) -> None:
        try:
            self._report = self._runner.shut_down(self)
        finally:
            self._stopped.set()
            self._waitress.pull_trigger()

    @property
    def _live_channels(self) -> list[DrainChannel]:
        """The open connections but for those of cut requests whose threads never came back."""
        clients = [request.client for request in list(self._runner.gate.in_flight)]
        stuck = [client.channel for client in clients if isinstance(client, DrainTask)]
        return [channel for channel in self._waitress.channels if channel not in stuck]

    def _stop_once_quiet(self, step: Stop, now: float) -> None:
        waitress = self._waitress
        if waitress.accepting:
            waitress.accept_all()
        if self._live_channels and now < step.deadline:
            return
        wasyncore.poll2(0, waitress.map)  # what has arrived by now is read, and so not reset
        if any(channel.busy for channel in self._live_channels) and now < step.limit:
            return
        for channel in waitress.channels:
            wasyncore.dispatcher.close(channel)
        waitress.refuse_queued()
        self._stopped.set()


def serve(ground: Ground) -> int:
    """Serve from this process until a signal has led to the end; the exit code. Raises StartupError."""
    listener = ground.bind()
    service = build(ground.settings, ground.url)
    watchdog = ground.guard()
    service.runner.open()
    server = WaitressServer(service.app, service.runner, listener, ground.settings.threads, watchdog)
    return ground.finish(server.serve(ground.watch, ground.listening(listener)))
