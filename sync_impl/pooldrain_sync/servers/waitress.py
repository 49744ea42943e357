"""waitress, with a drain (patches internals of waitress 3.0.2).

Stock waitress knows no SIGTERM (requests in flight die with the process) and truncates responses on SIGINT.
Here its loop is ours: signal handlers set a flag and pull the trigger; while draining, requests are refused
by threads of their own; a response says close when its headers are built; at the end everything that the
kernel still queues is answered, and no connection is closed with unread bytes.

A body is read before a thread sees its request, and what a client has not taken yet of a response is kept
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
from waitress.buffers import ReadOnlyFileBasedBuffer
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask

from pooldrain.answers import Answer
from pooldrain.errors import InvalidRequest
from pooldrain.exit_codes import ExitCode
from pooldrain.gate import CLIENT, CLOSE_CONNECTION, CURRENT_RESERVATION, Reservation
from pooldrain.in_flight import InFlightRequest
from pooldrain.policy import HttpPolicy
from pooldrain.problems import CUT, INTERNAL_ERROR, REFUSED, invalid_request
from pooldrain.runtime.listener import (
    ACCEPT_BATCH,
    ACCEPT_PAUSE,
    BACKLOG,
    BROKEN_PAUSE,
    FIRST_BYTES,
    IDLE_LIMIT,
    LINGER_LIMIT,
    MOST_CONNECTIONS,
    REFUSING_THREADS,
    AcceptExhausted,
    Listener,
    Listeners,
    accepted,
    cannot_listen,
    drop_new_connections,
    each_of,
    has_arrived,
    has_taken_all,
    refuse_queued,
    server_address,
)
from pooldrain.runtime.process.memory import freeze_startup
from pooldrain.runtime.process.watchdog import Watchdog
from pooldrain.runtime.startup import Ground
from pooldrain.shutdown import ShutdownReport, Stop
from pooldrain.sqla.waits import tell, telling
from pooldrain.transcript import Listening
from pooldrain_sync.assembly import build
from pooldrain_sync.engine.exchange import SOFTWARE
from pooldrain_sync.engine.lookout import Lookout, run_slots
from pooldrain_sync.engine.request import RequestParser, at, base_environ, client_address, environ_of
from pooldrain_sync.middleware import readable
from pooldrain_sync.runner import Runner
from pooldrain_sync.servers.ending import Ending
from pooldrain_sync.servers.waitress_loop import PolledMap, SlotDispatcher
from pooldrain_sync.servers.waitress_request import DrainRequest, SpooledRequest

logger = logging.getLogger("pooldrain")


# Queueing for a thread is normal for a busy server, and told nowhere else.
logging.getLogger("waitress.queue").setLevel(logging.ERROR)


class DrainErrorTask(ErrorTask):
    """The answer to a request that is not served: as the other servers give it."""

    request: Any  # a DrainRequest

    def execute(self) -> None:
        """Send it."""
        self.version = "1.1"
        request: DrainRequest = self.request
        answer = request.answer or INTERNAL_ERROR  # of which the log tells
        if request.admitted is not None:
            request.admitted.status = answer.status
        self.status = answer.status_line
        self.response_headers = list(answer.headers)
        self.set_close_on_finish()
        self.write(b"" if request.command == "HEAD" else answer.body)


class DrainTask(WSGITask):
    """A request that is served: the gate's idea of its client."""

    request: Any  # a DrainRequest
    channel: DrainChannel
    interrupted = False
    left = False  # what has not come whole is not served
    _building_header = False

    def __init__(self, channel: DrainChannel, request: DrainRequest) -> None:
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
        """The WSGI environment: that of the other threaded server."""
        server, request = self.channel.server, self.request.request
        environ = environ_of(server.base, request, self.channel.addr, server.proxies)
        if isinstance(server.socket, Listeners) and self.channel.socket is not None:
            environ |= at(server_address(self.channel.socket))
        environ["wsgi.input"] = request.input
        environ[CLIENT] = self
        environ[CLOSE_CONNECTION] = self.set_close_on_finish
        return environ


class DrainChannel(HTTPChannel):
    """A connection: it keeps the gate's promises to its requests, and lingers before it closes."""

    task_class = DrainTask
    error_task_class = DrainErrorTask
    server: DrainServer
    addr: tuple[str, int]
    request: DrainRequest | None  # type: ignore[assignment]  # in place of waitress's; whose body is still coming
    requests: list[Any]  # of DrainRequest
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
        self._parser = RequestParser(self.server.limits, SpooledRequest)
        self._deaf = False  # the rest of what comes is not read: an answer in between closes the connection
        self.made = True

    def parser_class(self, adj: Adjustments) -> DrainRequest:  # type: ignore[override]  # called like the class it is
        """What waitress answers an error of its application's with."""
        return DrainRequest()

    @property
    def quiet(self) -> bool:
        """Whether nothing is to be answered or flushed, no client has only just connected, and no thread is at it."""
        if time.monotonic() < self._first_bytes_until:
            return False
        owing = self.requests or self.total_outbufs_len or self.will_close or self.close_when_flushed
        return not owing and self.server.map.waits(self.descriptor)

    def received(self, data: bytes) -> bool:
        """Take what has come: what is complete is served in its order."""
        with self.requests_lock:
            if self._deaf or self.will_close or self.close_when_flushed:
                return False
            invalid: InvalidRequest | None = None
            try:
                self._parser.feed(data)
            except InvalidRequest as error:
                invalid = error
            coming = self._parser.requests
            while coming and coming[0].complete:
                self._complete(self._known(coming.popleft()))
            self.request = self._known(coming[0]) if coming else None
            if invalid is not None:
                logger.info("invalid request refused: %s", invalid)
                self._answer_instead_of_serving(self.request or DrainRequest(), invalid_request(invalid.status))
            elif self.request is not None:
                self._await_body(self.request)
        return True

    def _known(self, request: Any) -> DrainRequest:
        """A request of which a part may have been there before."""
        if self.request is not None and self.request.request is request:
            self.request.completed = request.complete
            return self.request
        return DrainRequest(request)

    def _complete(self, request: DrainRequest) -> None:
        self.sent_continue = False
        self.requests.append(request)
        if len(self.requests) == 1:  # else whoever serves those before it goes on with it
            self.server.add_task(self)

    def _answer_instead_of_serving(self, request: DrainRequest, answer: Answer) -> None:
        request.complete_with(answer)
        self.request = None
        self._deaf = True
        self._complete(request)

    def _await_body(self, request: DrainRequest) -> None:
        """A head has come, and not all of its body: the gate learns of it now."""
        if self.requests:
            return  # first those before it
        runner = self.server.runner
        if request.admitted is None and request.path not in runner.probes.uncounted:
            given_id = request.request.header(b"x-request-id")
            address = "" if runner.access is None else self._address(request)
            request.admitted = runner.admit(request.command, readable(request.path), given_id, address=address)
            if request.admitted is None:
                self._answer_instead_of_serving(request, REFUSED)
                return
        if request.expect_continue and not self.sent_continue:
            self.send_continue()

    def _address(self, request: DrainRequest) -> str:
        return client_address(request.request, self.addr[0], self.server.proxies)

    def service(self) -> None:
        """Serve one request, in a thread."""
        request: DrainRequest = self.requests[0]
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
                self._answer_instead_of_serving(request, CUT)
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

    def _finish_unserved(self, request: DrainRequest | None) -> None:
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
        if not self._told or self.socket is None or not (self._deaf or self._parser.between_requests):
            return False
        return has_taken_all(self.socket.fileno())

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
        self._parser.close()


class DrainServer(TcpWSGIServer):
    """The listener: hands requests to the busy threads, or to the refusing ones."""

    channel_class = DrainChannel
    _fileno: int | None

    def __init__(
        self, app: Any, runner: Runner, listener: Listener, threads: int, slots: int, http: HttpPolicy
    ) -> None:
        self.runner = runner
        self.limits = http.limits
        self.proxies = http.trusted_proxies or None
        self.base = base_environ(server_address(listener), SOFTWARE, http.root_path)
        self.base["wsgi.file_wrapper"] = ReadOnlyFileBasedBuffer
        self.keep_alive = http.keep_alive
        self._refusing = ThreadedTaskDispatcher()
        # A thread for each probe's path, from its first one on: they are answered whatever the others do.
        self._probes = {path: ThreadedTaskDispatcher() for path in runner.probes.uncounted}
        self.map = PolledMap()
        self.lookout = Lookout(threads, slots)
        dispatcher = self.threads = SlotDispatcher(self.map, self.lookout.slots)
        self.serving = threading.local()  # `channel`: what this thread serves
        adjustments = Adjustments(
            sockets=[each_of(listener)[0]],  # which nobody looks at again
            threads=threads,
            backlog=BACKLOG,
            connection_limit=MOST_CONNECTIONS + 1,  # the listener is one to waitress
            ident=SOFTWARE,
        )
        self.lingering: dict[DrainChannel, float] = {}  # until when
        self.accept_again_at = 0.0  # monotonic seconds, if not 0; nothing is accepted until then
        self._crowd = 0  # or until there are fewer connections than this
        self._tidied_at = 0.0
        self._retired_at = 0.0  # as `time.time()` has it
        self._accept_lock = threading.Lock()
        self.failed: BaseException | None = None  # the listener
        listener.setblocking(False)
        sockinfo = (listener.family, listener.type, listener.proto, listener.getsockname())
        super().__init__(
            app,
            self.map,
            False,
            listener,  # type: ignore[arg-type]  # one or several
            dispatcher=dispatcher,
            adj=adjustments,
            sockinfo=sockinfo,
            bind_socket=False,
        )
        dispatcher.set_thread_count(threads)

    def set_reuse_addr(self) -> None:
        """Was done when it was bound."""

    def getsockname(self) -> Any:
        """What waitress tells of itself to nobody."""
        assert self.socket is not None
        return server_address(self.socket)

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
        request: DrainRequest = task.requests[0]
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
        expired = now - self.keep_alive
        for channel in self.channels:
            if (
                channel.requests
                or max(channel.last_activity, self._retired_at) >= expired
                or not self.map.claim(channel.descriptor)
            ):
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
        if now >= self._tidied_at + 1.0:
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

    def retire(self) -> None:
        """Accept nobody any more, and keep no connection for long on which nothing comes."""
        with self._accept_lock:
            if self.accepting:
                assert self.socket is not None
                self.accepting = False
                self.del_channel()  # `close` would close the trigger as well
                self.socket.close()
                self.keep_alive, self._retired_at = IDLE_LIMIT, time.time()
        self.maintenance(time.time())

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

    def __init__(self, app: Any, runner: Runner, ground: Ground, listener: Listener, watchdog: Watchdog) -> None:
        self._runner = runner
        self._watch = ground.watch
        self._manager = ground.manager
        self._leaves = bool(ground.passed)  # whether its listener outlives it
        self._retires = False
        self._waitress = DrainServer(app, runner, listener, ground.settings.threads, run_slots(), ground.settings.http)
        self._watchdog = watchdog
        self._told = 0  # how many signals the runner knows of
        self._cancels = False  # whether that is asked for, and not yet done
        self._stop: Stop | None = None
        self._ending = Ending(runner, ground.watch, due=self._due, shut_down=self._shut_down, wake=self._wake)

    def serve(self, listening: tuple[Listening, ...]) -> ShutdownReport:
        """Serve until a signal has led to the end; the report of it. Raises StartupError."""
        self._watchdog.exit_code = ExitCode.DISPOSE_FAILED  # if nothing better is known
        lookout = self._waitress.lookout
        tell(lookout.slots)
        freeze_startup()
        try:
            self._waitress.start()
        except OSError as error:
            raise cannot_listen(listening[0].host, listening[0].port, error) from error
        for each in listening:
            self._runner.events.emit(each)
        self._manager.ready(listening[0].where)
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

    # What outlives it has a successor: it leaves as a worker does whose service goes on.

    called_off = False

    def retire(self) -> None:
        """Leave new clients to the successor; close, after a while, the connections on which nothing comes."""
        self._retires = True
        self._wake()

    def rejoin(self) -> None:
        """Never asked for."""

    @property
    def connected(self) -> bool:
        """Whether it has clients."""
        return self._waitress.accepting or bool(self._waitress.channels) or bool(self._waitress.lingering)

    def _shut_down(self) -> ShutdownReport:
        return self._runner.shut_down(self, retiring=self if self._leaves else None)

    def _wake(self) -> None:
        self._waitress.lookout.wake()

    # --- the loop -------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        waitress, now = self._waitress, time.monotonic()
        self._watch.drain()
        waitress.attend(now)
        self._ending.attend_signals()
        self._manager.beat()
        if self._retires:
            waitress.retire()
            if not self.connected:
                self._runner.look_again()
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
        if self._retires:
            instants.append(now + BROKEN_PAUSE)
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
    ground.follow(service.runner)
    service.runner.open()
    server = WaitressServer(service.app, service.runner, ground, listener, watchdog)
    return ground.finish(server.serve(ground.listening(listener)))
