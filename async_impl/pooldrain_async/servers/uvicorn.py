"""uvicorn, with a drain (patches internals of uvicorn 0.54.0).

What the stock server does at a shutdown, and this one does not: it replaces the application's signal handlers
and raises the signal again (exit -15, `atexit` skipped); it closes the listener first, so that whatever the
kernel still queues is reset, and no 503 is ever sent; it closes idle connections whether or not a request has
just arrived on them; it polls every 0.1 s. Here everything is accepted and answered to the end, connections
linger, and all waiting is on events.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from pooldrain.errors import StartupError
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
from pooldrain_async.runner import Runner

# Seconds between two renewals of the Date header.
TICK = 1.0


class DrainState(ServerState):
    """uvicorn's state of all connections, with an event that tells when one is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.connection_gone = asyncio.Event()
        self.connecting = 0  # accepted, and not yet in `connections`


class LingeringTransport:
    """A transport whose `close` closes our half first, so that unread bytes do not reset what is on the wire."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self.lingering = False
        self.write = transport.write  # the hot path goes straight through

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self.lingering or self._transport.is_closing()

    def close(self) -> None:
        """Close our half after what is buffered; the rest when the client has closed, or after a while."""
        if self.lingering or self._transport.is_closing() or not self._transport.can_write_eof():
            self._transport.close()
            return
        self.lingering = True
        with suppress(OSError):  # the client was first
            self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(LINGER_LIMIT, self._transport.close)


class DrainProtocol(HttpToolsProtocol):
    """A connection that lingers before it closes."""

    server_state: DrainState
    transport: LingeringTransport  # type: ignore[assignment]  # looks like a Transport to uvicorn

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_state.connecting += 1
        self._first_bytes_until = time.monotonic() + FIRST_BYTES

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """A client has connected."""
        self.server_state.connecting -= 1
        super().connection_made(LingeringTransport(transport, self.loop))  # type: ignore[arg-type]  # see above

    def data_received(self, data: bytes) -> None:
        """Bytes have come; a lingering connection throws them away."""
        self._first_bytes_until = 0.0
        if not self.transport.lingering:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        self.server_state.connection_gone.set()

    @property
    def busy(self) -> bool:
        """Whether bytes of an answer are still to be sent or of a request to be read, or a client just connected."""
        transport = self.transport
        if transport.get_write_buffer_size() > 0 or time.monotonic() < self._first_bytes_until:
            return True
        if transport.is_closing():
            return False
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))


class UvicornServer(uvicorn.Server):
    """The server: serves until the runner's shutdown is over."""

    server_state: DrainState

    def __init__(
        self, app: ASGIApp, runner: Runner, listener: socket.socket, *, owns_listener: Callable[[], bool] = lambda: True
    ) -> None:
        """`owns_listener`: whether, at the end, no other process listens on the same socket."""
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                http=DrainProtocol,
                ws="none",
                loop="asyncio",
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
            )
        )
        self.server_state = DrainState()
        self._runner = runner
        self._listener = listener
        self._owns_listener = owns_listener
        self._stopped = asyncio.Event()
        self._shutdown_task: asyncio.Task[ShutdownReport] | None = None

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # a plain one will do
        """Leave the signals alone: they are ours."""
        return nullcontext()

    async def run_to_end(self, watch: SignalWatch, listening: Listening) -> ShutdownReport:
        """Serve until a signal has led to the end; the report of it. Raises StartupError."""
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self._start(listening)
        self._runner.events.emit(listening)
        loop = asyncio.get_running_loop()

        def wake(name: str) -> None:
            loop.call_soon_threadsafe(self._signalled, name)

        watch.listen(wake)
        while not self._stopped.is_set():
            await self.on_tick(0)
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self._stopped.wait()
        assert self._shutdown_task is not None
        return await self._shutdown_task

    # --- what the runner asks for ---------------------------------------------------------------------------

    def drain(self) -> None:
        """From now on requests are refused; on a loop nothing else is to be done for that."""

    async def stop(self, step: Stop) -> None:
        """Answer what is queued, close the listener and every connection; return when done."""
        await self._accept_all()
        await self._until_quiet(step.deadline, step.deadline + STOP_LIMIT)
        with suppress(TimeoutError):  # an application that does not end must not keep the process
            await asyncio.wait_for(self.lifespan.shutdown(), STOP_LIMIT)

    async def _shut_down(self) -> ShutdownReport:
        try:
            return await self._runner.shut_down(self)
        finally:
            self._stopped.set()

    # --- the loop -------------------------------------------------------------------------------------------

    async def _start(self, listening: Listening) -> None:
        try:
            await self.startup(sockets=[self._listener])
        except OSError as error:
            raise cannot_listen(listening.host, listening.port, error) from error
        except SystemExit as error:  # how uvicorn says it
            raise StartupError("the application's lifespan did not start; the log says why") from error

    def _signalled(self, name: str) -> None:
        if self._runner.signalled(name):
            self._shutdown_task = asyncio.create_task(self._shut_down(), name="pooldrain-shutdown")

    async def _accept_all(self) -> None:
        """Accept until the kernel has no more, then close the listener."""
        with self._listener.dup() as listener:  # asyncio closes its own when told to stop accepting
            if self._owns_listener():
                drop_new_connections(listener)
            loop = asyncio.get_running_loop()
            for server in self.servers:
                for accepting in server.sockets:
                    loop.remove_reader(accepting.fileno())
            await asyncio.sleep(0)  # a closed server would drop what it has just accepted
            for server in self.servers:
                server.close()
            self._listener.close()
            listener.setblocking(False)
            for _ in range(BACKLOG):  # of a shared listener others empty the queue as well, or fill it for ever
                try:
                    client, _address = listener.accept()
                except BlockingIOError:
                    break
                except ConnectionError:
                    continue  # this one left before we came
                await loop.connect_accepted_socket(self._protocol, client)

    def _protocol(self) -> DrainProtocol:
        return DrainProtocol(self.config, self.server_state, self.lifespan.state)  # as uvicorn's own factory

    async def _until_quiet(self, deadline: float, limit: float) -> None:
        """Wait for every connection to go until `deadline`, for those being answered until `limit`."""
        state = self.server_state
        await _wait_while(lambda: bool(state.connections or state.connecting), state.connection_gone, deadline)
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


async def _wait_while(busy: Any, changed: asyncio.Event, deadline: float) -> None:
    """Wait for `busy()` to become false, looking again at each `changed`, at most until the deadline."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            while busy():
                changed.clear()
                await changed.wait()
