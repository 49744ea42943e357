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
    MOST_CONNECTIONS,
    REFUSING_THREADS,
    AcceptExhausted,
    accepted,
    cannot_listen,
    drop_new_connections,
    has_arrived,
    has_taken_all,
    refuse_queued,
)
from pooldrain.runtime.process.memory import freeze_startup
from pooldrain.runtime.process.watchdog import Watchdog
from pooldrain.runtime.startup import Ground
from pooldrain.shutdown import ShutdownReport, Stop
from pooldrain.sqla.waits import tell, telling
from pooldrain.transcript import Listening
from pooldrain_sync.assembly import build
from pooldrain_sync.engine.lookout import Lookout, run_slots
from pooldrain_sync.middleware import readable
from pooldrain_sync.runner import Runner
from pooldrain_sync.servers.ending import Ending
from pooldrain_sync.servers.waitress_loop import PolledMap, SlotDispatcher

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
    _fileno: int | None  # None once it is closed
    made = False  # it is in waitress's map before its constructor is through

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reservations: deque[Reservation | None] = deque()
        self._first_bytes_until = time.monotonic() + FIRST_BYTES
        self._serving: DrainTask | None = None
        self._unsent: list[tuple[DrainTask, Callable[[], None]]] = []
        self._begun = False  # some of the current answer has been handed over
        self._answered_for = False
        self._told = False  # its last answer has said that it is the last
        self.made = True

    def parser_class(self, adj: Adjustments) -> DrainParser:  # type: ignore[override]  # called like the class it is
        """What reads the next request."""
        return DrainParser(adj, self)

    @property
    def quiet(self) -> bool:
        """Whether nothing is to be answered or flushed, no client has only just connected, and no thread is at it."""
        if time.monotonic() < self._first_bytes_until:
            return False
        owing = self.requests or self.total_outbufs_len or self.will_close or self.close_when_flushed
        return not owing and self.server.map.waits(self.descriptor)

    def service(self) -> None:
        """Serve one request, in a thread."""
        request: DrainParser = self.requests[0]
        reservation = self.reservations.popleft()
        token = CURRENT_RESERVATION.set(reservation)
        self._begun = False
        self.server.serving.channel = self
        try:
            super().service()
        finally:
            self.server.serving.channel = None
            self._told = self.close_when_flushed
            self.arm()
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

    def _flush_outbufs_below_high_watermark(self) -> None:
        """Wait, in a thread, until the client has taken most of a big answer."""
        if self.total_outbufs_len > self.adj.outbuf_high_watermark:
            self._await_room()

    @telling
    def _await_room(self) -> None:
        super()._flush_outbufs_below_high_watermark()  # type: ignore[misc]  # the stubs do not know it

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
        self.arm()
        return True

    def arm(self) -> None:
        """Have the loop wait for what this channel waits for now."""
        self.server.map.arm(self.descriptor)

    @property
    def descriptor(self) -> int | None:
        """Its descriptor; None once it is closed."""
        return self._fileno

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
        with self.outbuf_lock:  # another thread may be about to close it
            if not self.connected:
                return False
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
        try:
            data = self.recv(self.adj.recv_bytes)  # closes the channel at the end of the stream
        except BlockingIOError:
            return
        except OSError:
            self.handle_close()
            return
        if data and self not in self.server.lingering:
            self.last_activity = time.time()
            self.received(data)

    def readable(self) -> bool:
        """Whether it waits for its client; a lingering one does for its end."""
        return self in self.server.lingering or bool(super().readable())

    @property
    def has_taken_all(self) -> bool:
        """Whether its client has taken its last answer, and has nothing more to send: then closing resets nothing."""
        return self._told and self.request is None and self.socket is not None and has_taken_all(self.socket.fileno())

    def close_lingering(self, *, if_taken: bool = False) -> None:
        """Linger no longer, at all or if its client has taken all."""
        if self.server.map.claim(self.descriptor):
            if not if_taken or self.has_taken_all:
                self.handle_close()
            self.server.map.release(self.descriptor)

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
                if not self.has_taken_all:
                    lingering[self] = time.monotonic() + LINGER_LIMIT
                    return
        super().handle_close()
        lingering.pop(self, None)
        self._tell_sent()
        self._finish_unserved(self.request)


class DrainServer(TcpWSGIServer):
    """The listener: hands requests to the busy threads, or to the refusing ones."""

    channel_class = DrainChannel
    _fileno: int | None

    def __init__(self, app: Any, runner: Runner, listener: socket.socket, threads: int, slots: int) -> None:
        self.runner = runner
        self._refusing = ThreadedTaskDispatcher()
        # A thread for each probe's path, from its first one on: they are answered whatever the others do.
        self._probes = {path: ThreadedTaskDispatcher() for path in runner.probes.uncounted}
        self.map = PolledMap()
        self.lookout = Lookout(threads, slots)
        dispatcher = self.threads = SlotDispatcher(self.map, self.lookout.slots)
        self.serving = threading.local()  # `channel`: what this thread serves
        adjustments = Adjustments(
            sockets=[listener],
            threads=threads,
            backlog=BACKLOG,
            connection_limit=MOST_CONNECTIONS + 1,  # the listener is one to waitress
            channel_timeout=KEEP_ALIVE,
            cleanup_interval=5,
            ident="pooldrain",
        )
        self.lingering: dict[DrainChannel, float] = {}  # until when
        self.accept_again_at = 0.0  # monotonic seconds, if not 0; nothing is accepted until then
        self._crowd = 0  # or until there are fewer connections than this
        self._tidied_at = 0.0
        self._accept_lock = threading.Lock()
        self.failed: BaseException | None = None  # the listener
        listener.setblocking(False)
        sockinfo = (listener.family, listener.type, listener.proto, listener.getsockname())
        super().__init__(
            app, self.map, False, listener, dispatcher=dispatcher, adj=adjustments, sockinfo=sockinfo, bind_socket=False
        )
        dispatcher.set_thread_count(threads)

    def start(self) -> None:
        """Accept. Raises OSError."""
        self.accept_connections()
        self.map.arm(self._fileno)

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
        dispatcher: ThreadedTaskDispatcher = probe or (self.threads if busy else self._refusing)
        if probe is not None:
            probe.set_thread_count(1)
        dispatcher.add_task(task)  # type: ignore[arg-type]  # a channel is a task to waitress

    def refuse_waiting(self) -> None:
        """Have the requests that wait for a thread refused."""
        for channel in self.threads.take_all():
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
            if channel.requests or channel.last_activity >= expired or not self.map.claim(channel.descriptor):
                continue
            if channel.socket is not None and not has_arrived(channel.socket.fileno()):
                channel.will_close = True
            self.map.release(channel.descriptor)

    def pull_trigger(self) -> None:
        """The channel that this thread serves has changed."""
        channel: DrainChannel | None = getattr(self.serving, "channel", None)
        if channel is not None:
            channel.arm()

    def attend(self, now: float) -> None:
        """The main thread is awake: see to what the others do not come to. Raises what has broken the listener."""
        if self.failed is not None:
            raise self.failed
        if self.lookout.look():
            self.threads.take_over()
        if now >= self._tidied_at + self.adj.cleanup_interval:
            self._tidied_at = now
            self.maintenance(time.time())
        self.map.arm(self._fileno)

    def readable(self) -> bool:
        """Whether to accept connections."""
        if not self.accepting or self.failed is not None or len(self.map) >= self.adj.connection_limit:
            return False
        return not self.accept_again_at or time.monotonic() >= self.accept_again_at or len(self.map) < self._crowd

    def handle_accept(self) -> None:
        """Accept a batch of connections; none for a while, if there is no room for them."""
        with self._accept_lock:
            if not self.accepting:
                return
            try:
                self._accept(ACCEPT_BATCH)
                self.accept_again_at = 0.0
                self.runner.can_accept()
            except AcceptExhausted as error:
                self.runner.cannot_accept(str(error))
                self._crowd = len(self.map)
                self.accept_again_at = time.monotonic() + ACCEPT_PAUSE
                self.lookout.wake()

    def _accept(self, limit: int) -> None:
        assert self.socket is not None
        for connection, address in accepted(self.socket, limit):
            with suppress(OSError):  # it has left
                self.set_socket_options(connection)
            DrainChannel(self, connection, address, self.adj, map=self.map).arm()

    def handle_error(self) -> None:
        """The listener is broken: that is for the main thread to know. Called while the exception is handled."""
        self.failed = sys.exc_info()[1]
        self.lookout.wake()

    def accept_all(self) -> None:
        """Accept until the kernel has no more, and then nothing more."""
        assert self.socket is not None
        drop_new_connections(self.socket)
        with self._accept_lock:
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
        return [channel for channel in list(self.map.values()) if isinstance(channel, DrainChannel) and channel.made]


class WaitressServer:
    """The loop around waitress: serves until the runner's shutdown is over."""

    def __init__(self, app: Any, runner: Runner, ground: Ground, listener: socket.socket, watchdog: Watchdog) -> None:
        self._runner = runner
        self._watch = ground.watch
        self._waitress = DrainServer(app, runner, listener, ground.settings.threads, run_slots())
        self._watchdog = watchdog
        self._told = 0  # how many signals the runner knows of
        self._cancels = False  # whether that is asked for, and not yet done
        self._stop: Stop | None = None
        self._ending = Ending(runner, ground.watch, due=self._due, shut_down=self._shut_down, wake=self._wake)

    def serve(self, listening: Listening) -> ShutdownReport:
        """Serve until a signal has led to the end; the report of it. Raises StartupError."""
        self._watchdog.exit_code = ExitCode.DISPOSE_FAILED  # if nothing better is known
        lookout = self._waitress.lookout
        tell(lookout.slots)
        freeze_startup()
        try:
            self._waitress.start()
        except OSError as error:
            raise cannot_listen(listening.host, listening.port, error) from error
        self._runner.events.emit(listening)
        report = self._ending.turn((self._watch.fileno(), lookout.woken), self._patience, self._turn)
        assert report is not None, "the runner's thread died"
        self._watchdog.exit_code = report.exit_code
        return report

    # --- what the runner asks for, in its thread ------------------------------------------------------------

    def drain(self) -> None:
        """From now on requests are refused: keep them off the busy threads."""
        self._waitress.start_refusing()
        self._wake()

    def cancel(self) -> None:
        """From now on no request waits for its client any more, or for a thread: those that do are refused."""
        self._cancels = True
        self._wake()

    def stop(self, step: Stop) -> None:
        """Answer what is queued, close the listener and every connection; return when done."""
        self._stop = step
        self._wake()
        self._ending.over.wait(step.limit + BROKEN_PAUSE - time.monotonic())  # less, unless the loop is broken

    def _shut_down(self) -> ShutdownReport:
        return self._runner.shut_down(self)

    def _wake(self) -> None:
        self._waitress.lookout.wake()

    # --- the loop -------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        waitress, now = self._waitress, time.monotonic()
        self._watch.drain()
        waitress.attend(now)
        self._ending.attend_signals()
        for channel, until in list(waitress.lingering.items()):
            if now >= until:
                channel.close_lingering()
        if self._cancels:
            self._cancels = False
            waitress.refuse_waiting()
            for channel in waitress.channels:
                channel.interrupt()
        if self._stop is not None:
            self._stop_once_quiet(self._stop)

    def _due(self) -> list[str]:
        due = self._watch.received[self._told :]
        self._told += len(due)
        return due

    def _patience(self) -> float:
        """How long to wait for events, in seconds."""
        now = time.monotonic()
        instants = [now + self._waitress.lookout.patience(), *self._waitress.lingering.values()]
        if self._waitress.accept_again_at > now:
            instants.append(self._waitress.accept_again_at)
        if self._stop is not None:
            instants.append(self._stop.deadline)
            instants.append(now + BROKEN_PAUSE / 10)
        return max(0.001, min(instants) - now)

    # --- the end --------------------------------------------------------------------------------------------

    @property
    def _live_channels(self) -> list[DrainChannel]:
        """The open connections but for those of cut requests whose threads never came back."""
        clients = [request.client for request in list(self._runner.gate.in_flight)]
        stuck = [client.channel for client in clients if isinstance(client, DrainTask)]
        return [channel for channel in self._waitress.channels if channel not in stuck]

    def _stop_once_quiet(self, step: Stop) -> None:
        waitress = self._waitress
        if waitress.accepting:
            waitress.accept_all()
        for channel in list(waitress.lingering):
            channel.close_lingering(if_taken=True)
        if self._live_channels and time.monotonic() < step.deadline:
            return
        waitress.threads.take_over()  # what has arrived by now is read, and so not reset
        if time.monotonic() < step.limit and not all(channel.quiet for channel in self._live_channels):
            return
        for channel in waitress.channels:
            wasyncore.dispatcher.close(channel)
        waitress.refuse_queued()
        self._ending.over.set()


def serve(ground: Ground) -> int:
    """Serve from this process until a signal has led to the end; the exit code. Raises StartupError."""
    listener = ground.bind()
    service = build(ground.settings, ground.url)
    watchdog = ground.guard()
    service.runner.open()
    server = WaitressServer(service.app, service.runner, ground, listener, watchdog)
    return ground.finish(server.serve(ground.listening(listener)))
