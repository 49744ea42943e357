"""uvicorn, with a drain (patches internals of uvicorn 0.54.0).

What the stock server does at a shutdown, and this one does not: it replaces the application's signal handlers
and raises the signal again (exit -15, `atexit` skipped); it closes the listener first, so that whatever the
kernel still queues is reset, and no 503 is ever sent; it closes idle connections whether or not a request has
just arrived on them; it polls every 0.1 s; it calls a response finished when the application has handed it over,
however much of it the client has still to take. Here everything is accepted and answered to the end, connections
linger, and all waiting is on events.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import copy_context
from dataclasses import replace
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from pooldrain.errors import InvalidRequest, StartupError
from pooldrain.exit_codes import ExitCode
from pooldrain.gate import BODILESS, CLIENT, ONE_WRITE
from pooldrain.policy import HttpPolicy
from pooldrain.problems import INTERNAL_ERROR, REFUSED, invalid_request
from pooldrain.request_head import check_head
from pooldrain.runtime.listener import (
    ACCEPT_BATCH,
    ACCEPT_PAUSE,
    BACKLOG,
    BROKEN_PAUSE,
    FIRST_BYTES,
    IDLE_LIMIT,
    LINGER_LIMIT,
    AcceptExhausted,
    Listener,
    accepted,
    cannot_listen,
    drop_new_connections,
    has_arrived,
    has_taken_all,
    refuse_queued,
)
from pooldrain.runtime.process.memory import freeze_startup
from pooldrain.runtime.process.service_manager import ServiceManager
from pooldrain.runtime.process.signals import SignalWatch
from pooldrain.runtime.process.watchdog import Watchdog
from pooldrain.runtime.startup import Ground
from pooldrain.runtime.tls import server_context
from pooldrain.shutdown import ShutdownReport, Stop
from pooldrain.transcript import Listening
from pooldrain_async.assembly import build
from pooldrain_async.loops import new_loop
from pooldrain_async.middleware import send_answer
from pooldrain_async.runner import Runner
from pooldrain_async.servers.forwarded import believe
from pooldrain_async.servers.uvicorn_websocket import websocket_protocol

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveEvent, ASGISendEvent, HTTPScope

    from pooldrain.runtime.options.settings import Settings

# Seconds between two looks, at the end, at who has taken the last answer.
TAKEN_PAUSE = 0.005

# Seconds between two renewals of the Date header.
TICK = 1.0

logger = logging.getLogger("pooldrain")
# What is no valid HTTP is the client's mistake, and told at level info, as on the other servers.
logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != "Invalid HTTP request received.")


class DrainState(ServerState):
    """uvicorn's state of all connections, with an event that tells when one is gone."""

    def __init__(self, http: HttpPolicy, tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.http = http
        self.tls = tls
        self.proxies = http.trusted_proxies or None
        self.connection_gone = asyncio.Event()
        self.connecting = 0  # accepted, and not yet in `connections`
        self.when_gone: Callable[[], None] | None = None  # called when one is gone


class LingeringTransport:
    """A transport whose `close` closes our half first, so that unread bytes do not reset what is on the wire.

    An answer's head goes out with the first of its body if that comes in the same turn: one system call, not two.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self.lingering = False
        self.told = True  # its client knows, once it has taken all, that this is the end
        self.answering: DrainCycle | None = None  # whose answer has not begun
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send; the head of an answer at the end of this turn of the loop at the latest."""
        if self._head:
            head, self._head = self._head, b""
            if len(data) <= ONE_WRITE:
                data = head + data
            else:
                self._transport.write(head)
        elif self.answering is not None and self.answering.response_started:
            self.answering = None
            self._head = data
            self._loop.call_soon(self.flush)
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Send a head that nothing has come after."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def unwrapped(self) -> asyncio.Transport:
        """The transport itself, as it was made."""
        self._transport.set_write_buffer_limits()
        return self._transport

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self.lingering or self._transport.is_closing()

    def close(self) -> None:
        """Close our half after what is buffered; the rest when the client has closed, or after a while."""
        self.flush()
        if self.lingering or self._transport.is_closing() or not self._transport.can_write_eof():
            self._transport.close()
            return
        self.lingering = True
        with suppress(OSError):  # the client was first
            self._transport.write_eof()
        self._transport.resume_reading()
        if not self._transport.get_write_buffer_size():
            self.sent()

    def sent(self) -> None:
        """Nothing is buffered any more."""
        if self.lingering and not self.close_if_taken():
            self._loop.call_later(LINGER_LIMIT, self._transport.close)

    def close_if_taken(self) -> bool:
        """Linger no longer if that would reset nothing; whether it does not."""
        transport = self._transport
        if not self.told or transport.get_write_buffer_size():
            return False
        taken = has_taken_all(transport.get_extra_info("socket").fileno())
        if taken:
            transport.close()
        return taken


class DrainCycle(RequestResponseCycle):
    """One request and its response: the gate's idea of its client."""

    connection: DrainProtocol
    interrupted = False
    task: asyncio.Task[None] | None = None
    _receiving = 0

    async def receive(self) -> ASGIReceiveEvent:
        """Wait for the client."""
        self._receiving += 1
        try:
            return await super().receive()
        finally:
            self._receiving -= 1

    async def send_500_response(self) -> None:
        """An error that nobody has caught."""
        await send_answer(replace(INTERNAL_ERROR, close=True), self.send)  # type: ignore[arg-type]  # uvicorn's types

    @property
    def sent(self) -> bool:
        """Whether nothing is buffered, or its client is not waited for."""
        return self.interrupted or not self.flow.write_paused

    def when_sent(self, done: Callable[[], None]) -> None:
        """At once, if nothing is buffered."""
        if self.sent:
            done()
        else:
            self.connection.unsent.append((self, done))

    def answer_instead(self, response: bytes) -> bool:
        """Answer for a task that does not."""
        if self.response_started or self.disconnected:
            return False
        self.leave()
        self.transport.write(response)
        self.transport.close()
        return True

    @property
    def awaits_body(self) -> bool:
        """Whether the application waits for the client to go on."""
        return self._receiving > 0 and self.more_body

    @property
    def owes_body(self) -> bool:
        """Whether some of the request's body has not come yet."""
        return self.more_body

    def break_off(self) -> None:
        """Send no more of the response."""
        self.leave()
        self.transport.close()

    def close_after(self) -> None:
        """Close the connection after this response."""
        self.keep_alive = False

    def leave(self) -> None:
        """Let the client have left, as far as the application knows."""
        self.disconnected = True
        self.message_event.set()

    def interrupt(self) -> None:
        """Wait for the client no longer."""
        self.interrupted = True
        if self.task is not None and not self.response_complete:
            self.task.cancel()


class _UntoldLength:
    """The length of a body that ends with its connection, as uvicorn counts it down: nothing is too long or short."""

    def __lt__(self, size: int) -> bool:
        return False

    def __sub__(self, size: int) -> _UntoldLength:
        return self

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]  # nobody keeps it


class Http10Cycle(DrainCycle):
    """The same for HTTP/1.0, which knows no chunks, and whose connections are kept for who has asked for it."""

    async def send(self, message: ASGISendEvent) -> None:
        """Send a part of the response."""
        if message["type"] == "http.response.start" and not self.response_started:
            headers = list(message.get("headers", ()))
            names = {name.lower() for name, _ in headers}
            if b"content-length" not in names and message["status"] not in BODILESS:
                self.keep_alive = self.chunked_encoding = False
                self.expected_content_length = _UntoldLength()  # type: ignore[assignment]  # counts like a number
            elif self.keep_alive and b"connection" not in names:
                message = {**message, "headers": [*headers, (b"connection", b"keep-alive")]}
        await super().send(message)


def _with_globals(function: Any, **names: object) -> Any:
    """`function`, with other values for these names of its module."""
    return FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__)


# uvicorn names the class of its cycles here only; to change a cycle's class afterwards costs twice as much.
_on_headers_complete = _with_globals(HttpToolsProtocol.on_headers_complete, RequestResponseCycle=DrainCycle)


class DrainProtocol(HttpToolsProtocol):
    """A connection that knows what it owes, and lingers before it closes."""

    server_state: DrainState
    transport: LingeringTransport  # type: ignore[assignment]  # looks like a Transport to uvicorn

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._first_bytes_until = time.monotonic() + FIRST_BYTES
        self._serving: DrainCycle | None = None
        self._context = copy_context()
        self._idle_until: float | None = None  # loop time, while it waits for a request after an answer
        self._idle_timer: asyncio.TimerHandle | None = None
        self._limits = self.server_state.http.limits
        self._head = 0  # bytes of a head that is not complete
        self._body = 0  # bytes of the body that is coming, if they are counted
        self._invalid: InvalidRequest | None = None  # what has come behind the request that is served
        self.unsent: list[tuple[DrainCycle, Callable[[], None]]] = []  # responses that are buffered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """A client has connected."""
        super().connection_made(LingeringTransport(transport, self.loop))  # type: ignore[arg-type]  # see above
        # So that writing is paused as long as anything is buffered; with 0, TLS's transport would pause it for ever.
        transport.set_write_buffer_limits(high=0 if self.server_state.tls is None else 1, low=0)

    def attend(self, cycle: DrainCycle) -> None:
        """A request begins to be served."""
        cycle.connection = self
        cycle.scope[CLIENT] = cycle  # type: ignore[literal-required]  # a key of our own
        self._serving = self.transport.answering = cycle

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        assert isinstance(cycle, DrainCycle)
        self.attend(cycle)
        # As uvicorn's own (without its opt-in workaround), but kept for the gate.
        cycle.task = task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; one behind the body is dropped."""
        if "method" not in self.scope:
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """A head is complete. Raises InvalidRequest if it is not served."""
        parser = self.parser
        assert parser is not None, "it calls this"
        version = parser.get_http_version()
        self.url, _, self.expect_100_continue = check_head(
            parser.get_method().decode("ascii"), version, self.url, self.headers, self._limits
        )
        if (proxies := self.server_state.proxies) is not None:
            believe(proxies, self.scope, self.config.root_path)
            self.root_path = self.scope["root_path"]
        self._body = 0
        _on_headers_complete(self)
        if version == "1.0":
            self.cycle.__class__ = Http10Cycle
            self.cycle.keep_alive = parser.should_keep_alive()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to another protocol, which closes it in its own way."""
        self._drop_idle_timer()
        self.transport = self.transport.unwrapped()  # type: ignore[assignment]  # only to be handed over
        super().handle_websocket_upgrade()

    def on_body(self, body: bytes) -> None:
        """A part of a body. Raises InvalidRequest if it is too long."""
        if self._limits.body is not None:
            self._body += len(body)
            self._limits.check_body(self._body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        """The response has been handed over."""
        self.transport.flush()
        if self.pipeline:
            self._context.run(super().on_response_complete)  # the next request is not of this one's context
        elif self._invalid is not None and not self.transport.is_closing():
            self.refuse(self._invalid)
        elif not self.transport.is_closing():
            self.server_state.total_requests += 1
            self.flow.resume_reading()
            self._await_request()

    # Not uvicorn's timer, which is set and cancelled for every request: ours looks when it ends what has come since.

    def _await_request(self) -> None:
        self._idle_until = until = self.loop.time() + self.timeout_keep_alive
        if self._idle_timer is None:
            # Not in the request's context: the timer of the kept connection would keep the request alive for as long.
            self._idle_timer = self._context.run(self.loop.call_at, until, self._look_whether_idle)

    def _look_whether_idle(self) -> None:
        """Close, if nothing has come for the keep-alive time."""
        self._idle_timer = None
        until = self._idle_until
        if until is None:
            return
        if until > self.loop.time():
            self._idle_timer = self.loop.call_at(until, self._look_whether_idle)
        elif self.busy:  # something has come in this very moment
            self._await_request()
        else:
            self.transport.told = False
            self.transport.close()

    def limit_idling(self, seconds: int) -> None:
        """Close after this time without a request from now on, counted from this moment if it is idle already."""
        self.timeout_keep_alive = seconds
        # Both None until the first request, whatever their annotations say.
        scope, cycle = cast("HTTPScope | None", self.scope), cast("RequestResponseCycle | None", self.cycle)
        half_a_head = scope is not None and "method" not in scope
        if not half_a_head and (cycle is None or cycle.response_complete):
            self._drop_idle_timer()
            self._await_request()

    def _drop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def resume_writing(self) -> None:
        """The client has taken everything, as far as the kernel lets us know."""
        super().resume_writing()
        self.transport.sent()
        self._tell_sent()

    def _tell_sent(self) -> None:
        while self.unsent:
            _, done = self.unsent.pop(0)
            done()

    def interrupt(self) -> None:
        """Wait no longer for this client to send the rest of a body, or to take what is buffered for it."""
        untaken = self.flow.write_paused
        for cycle in {self._serving, *(cycle for cycle, _ in self.unsent)}:
            if cycle is not None and (untaken or cycle.awaits_body):
                cycle.interrupt()
                cycle.disconnected = untaken
        if untaken:
            self.transport.abort()
        self._tell_sent()

    def send_400_response(self, msg: str) -> None:
        """What has come is not valid HTTP, as the exception says that is being handled: answer it as all servers do."""
        error = sys.exception()
        cause = None if error is None else error.__context__
        self.refuse(cause if isinstance(cause, InvalidRequest) else InvalidRequest(str(error)))

    def refuse(self, invalid: InvalidRequest) -> None:
        """Answer what is not served, and close."""
        logger.info("invalid request refused: %s", invalid)
        cycle = self._serving
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or not cycle.more_body:
                self._invalid = invalid  # after the answer to what came before
                self.flow.pause_reading()
                return
            cycle.leave()
        self.transport.write(invalid_request(invalid.status).raw())
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Bytes have come; a lingering connection throws them away."""
        self._first_bytes_until = 0.0
        self._idle_until = None
        if self.transport.lingering:
            return
        super().data_received(data)
        # None until the first request, whatever its annotation says.
        if (scope := cast("HTTPScope | None", self.scope)) is not None and "method" not in scope:
            self._head += len(data)
            if self._head > self._limits.head and not self.transport.lingering:
                self.refuse(self._limits.head_too_long(in_target=not self.headers))
        else:
            self._head = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        self._drop_idle_timer()
        if self._serving is not None and not self._serving.response_complete:
            self._serving.leave()  # with a pipelined request behind it, uvicorn tells that one only
        self._tell_sent()
        self.server_state.connection_gone.set()
        if self.server_state.when_gone is not None:
            self.server_state.when_gone()

    @property
    def busy(self) -> bool:
        """Whether bytes of an answer are still to be sent or of a request to be read, or a client just connected."""
        transport = self.transport
        if transport.get_write_buffer_size() > 0 or time.monotonic() < self._first_bytes_until:
            return True
        if transport.is_closing():
            return False
        return has_arrived(transport.get_extra_info("socket").fileno())


async def _run_asgi(cycle: DrainCycle, app: ASGI3Application) -> None:
    """What stands for `_start_asgi_task` with a uvicorn that has none: the cycle's task tells us itself."""
    connection = getattr(cycle.on_response, "__self__", None)
    assert isinstance(connection, DrainProtocol), "the method that is called is a connection's"
    connection.attend(cycle)
    cycle.task = asyncio.current_task()
    await RequestResponseCycle.run_asgi(cycle, app)


if not hasattr(HttpToolsProtocol, "_start_asgi_task"):
    setattr(DrainCycle, "run_asgi", _run_asgi)  # noqa: B010 - not for the versions that type checkers see


class UvicornServer(uvicorn.Server):
    """The server: serves until the runner's shutdown is over."""

    server_state: DrainState

    def __init__(
        self,
        app: ASGIApp,
        runner: Runner,
        listener: Listener,
        listening: tuple[Listening, ...],
        watch: SignalWatch,
        settings: Settings,
        *,
        watchdog: Watchdog | None = None,
        manager: ServiceManager | None = None,
        owns_listener: Callable[[], bool] | None = None,
    ) -> None:
        """`listening`: what to tell when it does. `manager`: of a process that has no master.

        `owns_listener`: of a worker, whether, at the end, no other process listens on the same socket.
        """
        http = settings.http
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                http=DrainProtocol,
                ws=websocket_protocol() or "none",
                loop="asyncio",
                backlog=BACKLOG,
                timeout_keep_alive=http.keep_alive,  # type: ignore[arg-type]  # only added to a time
                root_path=http.root_path,
                proxy_headers=False,  # our own way, which is that of all servers, comes earlier
            )
        )
        self.server_state = DrainState(http, server_context(settings.certfile, settings.keyfile))
        self._runner = runner
        self._listener = listener
        self._listening = listening
        self._watch = watch
        self._owns_listener = owns_listener or (lambda: True)
        self._watchdog = watchdog
        self._manager = manager or ServiceManager()
        self._stopped = asyncio.Event()
        self._shutdown_task: asyncio.Task[ShutdownReport] | None = None
        self._told = 0  # how many signals the runner knows of
        self._accept_later: asyncio.TimerHandle | None = None
        self._connects: set[asyncio.Task[None]] = set()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # a plain one will do
        """Leave the signals alone: they are ours."""
        return nullcontext()

    async def run_to_end(self) -> ShutdownReport:
        """Serve until a signal has led to the end; the report of it. Raises StartupError."""
        if self._watchdog is not None:
            self._watchdog.exit_code = ExitCode.DISPOSE_FAILED  # if nothing better is known
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise StartupError("the application's lifespan did not start; the log says why")
        freeze_startup()
        self._start()
        for each in self._listening:
            self._runner.events.emit(each)
        self._manager.ready(self._listening[0].where)
        asyncio.get_running_loop().add_reader(self._watch, self._woken)
        self._attend_signals()
        while not self._stopped.is_set():
            try:
                self._manager.beat()
                await self.on_tick(0)
            except Exception as error:  # noqa: BLE001 - whatever it is, what it serves is to be ended in order
                self.broken(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self._stopped.wait()
        assert self._shutdown_task is not None
        report = await self._shutdown_task
        if self._watchdog is not None:
            self._watchdog.exit_code = report.exit_code
        return report

    # --- what the runner asks for ---------------------------------------------------------------------------

    def drain(self) -> None:
        """From now on requests are refused; on a loop nothing else is to be done for that."""

    def cancel(self) -> None:
        """From now on no request waits for its client any more."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, DrainProtocol):  # a WebSocket's task is cancelled, and not interrupted
                connection.interrupt()

    async def stop(self, step: Stop) -> None:
        """Answer what is queued, close the listener and every connection; return when done."""
        self._accept_all()
        await self._until_quiet(step.deadline, step.limit)
        await self._close_all()

    async def _shut_down(self) -> ShutdownReport:
        try:
            return await self._runner.shut_down(self)
        finally:
            self._stopped.set()

    # --- the loop -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._runner.on_shutdown(self._end_lifespan)
        try:
            self._listener.listen(BACKLOG)
        except OSError as error:
            first = self._listening[0]
            raise cannot_listen(first.host, first.port, error) from error
        self._listener.setblocking(False)
        self._accept_again()

    async def _end_lifespan(self) -> None:
        """The application's lifespan ends, before anything else of its teardown."""
        await self.lifespan.shutdown()
        if isinstance(self.lifespan, LifespanOn) and self.lifespan.shutdown_failed:
            raise RuntimeError("the application's lifespan did not end; the log says why")

    def broken(self, error: BaseException) -> None:
        """The loop, or a part of the server, has failed: tell it, and end in order, with what still works."""
        self._runner.failed("the server's loop", error)
        if not self._watch.received:
            self._watch.handle(signal.SIGTERM)

    def _woken(self) -> None:
        self._watch.drain()
        self._attend_signals()

    def _attend_signals(self) -> None:
        for name in self._watch.take_ignored():
            self._runner.signal_ignored(name)
        self._begin(self._watch.received[self._told :])

    def _begin(self, names: Sequence[str]) -> None:
        """Let the runner know of signals; the first begins the shutdown."""
        for name in names:
            self._told += 1
            self._runner.signalled(name)
        if self._told and self._shutdown_task is None:
            self._shutdown_task = asyncio.create_task(self._shut_down(), name="pooldrain-shutdown")

    # Not asyncio's own accepting: without descriptors left it tries its whole backlog, and logs each attempt.

    def _accept_again(self) -> None:
        self._accept_later = None
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept_now(self) -> None:
        """A connection has gone: there may be room."""
        if self._accept_later is not None:
            self._accept_later.cancel()
            self._accept_later = asyncio.get_running_loop().call_later(
                0, self._accept_again
            )  # it is about to be closed

    def _accept_no_more(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        if self._accept_later is not None:
            self._accept_later.cancel()
            self._accept_later = None

    def _accept(self) -> None:
        """Accept a batch of connections; none for a while, if there is no room for them."""
        try:
            self._accept_from_queue(ACCEPT_BATCH)
            self._runner.can_accept()
        except AcceptExhausted as error:
            self._runner.cannot_accept(str(error))
            self._accept_no_more()
            self._accept_later = asyncio.get_running_loop().call_later(ACCEPT_PAUSE, self._accept_again)
            self.server_state.when_gone = self._accept_now
        except Exception as error:  # noqa: BLE001 - the listener is broken, whatever with
            self._accept_no_more()
            self.broken(error)

    def _accept_from_queue(self, limit: int) -> None:
        for client, _address in accepted(self._listener, limit):
            self.server_state.connecting += 1
            task = asyncio.create_task(self._connect(client))
            self._connects.add(task)
            task.add_done_callback(self._connects.discard)

    async def _connect(self, client: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, client, ssl=self.server_state.tls)
        except OSError:  # it has left
            client.close()
        finally:
            self.server_state.connecting -= 1
            self.server_state.connection_gone.set()

    def _accept_all(self) -> None:
        """Accept until the kernel has no more, and then nothing more."""
        if self._owns_listener():
            drop_new_connections(self._listener)
        self._accept_no_more()
        try:
            self._accept_from_queue(BACKLOG)  # of a shared listener others empty the queue as well, or fill it for ever
        except AcceptExhausted as error:
            self._runner.cannot_accept(str(error))
            return  # what is left is refused when there is room again
        except OSError as error:
            self.broken(error)
        self._listener.close()

    async def _close_all(self) -> None:
        """Close what is left, now and not by the process's end: the report needs a descriptor; refuse who had none."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        if self._listener.fileno() >= 0 and self._owns_listener():
            refuse_queued(self._listener, REFUSED.raw())
        self._listener.close()

    def _protocol(self) -> DrainProtocol:
        return DrainProtocol(self.config, self.server_state, self.lifespan.state)  # as uvicorn's own factory

    async def _until_quiet(self, deadline: float, limit: float) -> None:
        """Wait for every connection to go until `deadline`, for those being answered until `limit`."""
        state = self.server_state
        while (state.connections or state.connecting) and (now := time.monotonic()) < deadline:
            for connection in list(state.connections):
                transport = connection.transport
                if isinstance(transport, LingeringTransport) and transport.lingering:
                    transport.close_if_taken()
            await _await_change(state.connection_gone, min(deadline, now + TAKEN_PAUSE))
        # What has arrived by now is read, and so not reset: turn the loop until nothing is left to read or to send.
        while self._busy and time.monotonic() < limit:  # noqa: ASYNC110 - readable sockets set no event
            await asyncio.sleep(0.001)

    @property
    def _busy(self) -> bool:
        """Whether something is still to be answered or flushed, cut requests that never came back aside."""
        state = self.server_state
        if state.connecting or len(state.tasks) > len(self._runner.gate.in_flight):
            return True
        return any(isinstance(connection, DrainProtocol) and connection.busy for connection in state.connections)


class RetiringServer(UvicornServer):
    """One whose listener outlives it: others, or a successor, serve who comes while it ends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._retires = False
        self._clients: asyncio.Task[None] | None = None

    @property
    def called_off(self) -> bool:
        """Whether nobody takes over its clients, after all."""
        return False

    @property
    def connected(self) -> bool:
        """Whether it has clients."""
        return bool(self.server_state.connections or self.server_state.connecting)

    async def retire(self) -> None:
        """Leave new clients to the others; close, after a while, the connections on which nothing comes."""
        self._retires = True
        self._accept_no_more()
        if self._connects:
            await asyncio.wait(self._connects)  # what was accepted a moment ago becomes a connection
        self.config.timeout_keep_alive = IDLE_LIMIT
        for connection in self.server_state.connections:
            if isinstance(connection, DrainProtocol):
                connection.limit_idling(IDLE_LIMIT)
        self._clients = asyncio.create_task(self._tell_when_alone(), name="pooldrain-clients")

    async def rejoin(self) -> None:
        """Take new clients again: the whole service ends, and they are to be told."""
        self._retires = False
        self._accept_again()

    async def _shut_down(self) -> ShutdownReport:
        try:
            return await self._runner.shut_down(self, retiring=self)
        finally:
            self._stopped.set()

    async def _tell_when_alone(self) -> None:
        while self.connected:
            self.server_state.connection_gone.clear()
            await self.server_state.connection_gone.wait()
        self._runner.look_again()

    def _accept_all(self) -> None:
        if self._retires:
            self._listener.close()
        else:
            super()._accept_all()


def serve_to_end(loop: asyncio.AbstractEventLoop, server: UvicornServer) -> ShutdownReport:
    """Run the server on its loop until a signal has led to the end; what ends the loop before does not end that."""
    serving = loop.create_task(server.run_to_end(), name="pooldrain-server")
    while True:
        try:
            return loop.run_until_complete(serving)
        except BaseException as error:  # a task's SystemExit is raised through the loop, and may be of anybody's
            if serving.done():
                raise
            server.broken(error)
            time.sleep(BROKEN_PAUSE)


async def _await_change(changed: asyncio.Event, deadline: float) -> None:
    """Wait for the next `changed`, at most until the deadline."""
    changed.clear()
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            await changed.wait()


def serve(ground: Ground) -> int:
    """Serve from this process until a signal has led to the end; the exit code. Raises StartupError."""
    # Not asyncio.run: it would wait for tasks that swallow their cancellation.
    loop = new_loop(ground.settings.loop)
    return ground.finish(serve_to_end(loop, loop.run_until_complete(_open(ground))))


async def _open(ground: Ground) -> UvicornServer:
    listener = ground.bind()
    service = build(ground.settings, ground.url)
    watchdog = ground.guard()
    ground.follow(service.runner)
    await service.runner.open()
    kind = RetiringServer if ground.passed else UvicornServer
    return kind(
        service.app,
        service.runner,
        listener,
        ground.listening(listener),
        ground.watch,
        ground.settings,
        watchdog=watchdog,
        manager=ground.manager,
        owns_listener=lambda: not ground.passed,
    )
