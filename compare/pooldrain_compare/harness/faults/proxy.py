"""A small loopback proxy between a service and its PostgreSQL, which can do to connections what networks do.

It runs an event loop in a thread of its own; its methods may be called from any thread, and return when the thing is
done. What it cannot do is lose packets: in a black hole the kernel still acknowledges what nobody will read, so that
no keepalive and no TCP user timeout ends such a connection. That is the harder case: only our own deadlines help.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy.engine import URL, make_url

Result = TypeVar("Result")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_HOST = "127.0.0.1"
_CHUNK = 65536
_CALL_TIMEOUT = 10.0  # seconds for the loop to do what it is told; it never waits for a peer
_IDLE = b"Z\x00\x00\x00\x05I"  # PostgreSQL's ReadyForQuery, outside a transaction
_TURNS = 10  # of the loop, in which it reads what the kernel has by now: a chunk, its end, and who waits for them
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Proxy:
    """Forwards to the server of `url` (TCP or a Unix socket) whatever comes to `address`."""

    def __init__(self, url: str) -> None:
        self._target = _endpoint(make_url(url))
        self._links: set[_Link] = set()
        self._latency = 0.0
        self._flowing = asyncio.Event()  # cleared: a black hole
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        # Bound for as long as the proxy lives, and never listening: nobody else gets the port while we refuse.
        self._placeholder = _bound(0)
        self.address: tuple[str, int] = self._placeholder.getsockname()

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._do(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._placeholder.close()

    def through(self, url: str) -> str:
        """The URL of a database, through here."""
        host, port = self.address
        changed = make_url(url).difference_update_query(["host", "port"]).set(host=host, port=port)
        return changed.render_as_string(hide_password=False)

    @property
    def connections(self) -> int:
        """Connections that are forwarded, or held."""
        return len(self._links)

    # -- what can be done to connections -------------------------------------------------------------------

    def restore(self) -> None:
        """Accept and forward again. A connection whose client has left meanwhile is closed, its last words unsaid."""
        self._do(self._restore)

    def refuse(self) -> None:
        """Refuse new connections, as a machine does on which nobody listens. The others are forwarded as before."""
        self._do(self._stop_listening)

    def reset(self) -> None:
        """Reset every connection; new ones are forwarded."""
        self._do(self._reset)

    def black_hole(self) -> None:
        """Forward nothing any more, in neither direction. New connections are accepted, and nothing comes of them."""
        self._do(self._begin_black_hole)

    def delay(self, seconds: float) -> None:
        """Hold back everything that the server says, for so long each time."""
        self._do(lambda: self._set_latency(seconds))

    def cut_idle(self) -> int:
        """Close connections on which nothing is under way, no transaction either; how many there were."""
        return self._do(self._cut_idle)

    def switch(self, url: str) -> None:
        """Forward new connections to another server."""
        self._do(lambda: self._set_target(_endpoint(make_url(url))))

    # -- in the loop ---------------------------------------------------------------------------------------

    def _do(self, what: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        return asyncio.run_coroutine_threadsafe(what(), self._loop).result(_CALL_TIMEOUT)

    async def _listen(self) -> None:
        if self._server is None:
            # Bound to the placeholder's port; the stream objects of a connection that ends early close by themselves.
            self._server = await asyncio.start_server(self._accepted, sock=_bound(self.address[1]))

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _restore(self) -> None:
        self._latency = 0.0
        if not self._flowing.is_set():
            for _ in range(_TURNS):
                await asyncio.sleep(0)  # who has left by now is seen to have left
            for link in [link for link in self._links if link.left]:
                link.abort()
            self._flowing.set()
        await self._listen()

    async def _reset(self) -> None:
        for link in list(self._links):
            link.abort()

    async def _begin_black_hole(self) -> None:
        self._flowing.clear()

    async def _set_latency(self, seconds: float) -> None:
        self._latency = seconds

    async def _cut_idle(self) -> int:
        idle = [link for link in self._links if link.idle]
        for link in idle:
            link.abort()
        return len(idle)

    async def _set_target(self, target: str | tuple[str, int]) -> None:
        self._target = target

    async def _close(self) -> None:
        await self._stop_listening()
        for link in list(self._links):
            link.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link((reader, writer))
        self._links.add(link)
        try:
            await link.forward(self)
        except OSError:  # the server is not there
            link.abort()
        finally:
            self._links.discard(link)
            link.close()

    async def connect(self) -> Streams:
        """A connection to the server."""
        await self._flowing.wait()
        if isinstance(self._target, str):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)

    async def hold(self, since: float, *, answer: bool) -> None:
        """Wait until what was read at `since` may be passed on."""
        if answer and self._latency:
            await asyncio.sleep(max(0.0, since + self._latency - self._loop.time()))
        await self._flowing.wait()


class _Link:
    """A connection from a client, and the one to the server that belongs to it."""

    def __init__(self, client: Streams) -> None:
        self.left = False  # the client has closed
        self._client = client
        self._server: Streams | None = None
        self._last = b""  # the last bytes, if it was the server who sent them

    @property
    def idle(self) -> bool:
        """Whether the server waits for the next query."""
        return self._last.endswith(_IDLE)

    def close(self) -> None:
        """Close both sides, when what has been passed on is sent."""
        for _, writer in filter(None, (self._client, self._server)):
            writer.close()

    def abort(self) -> None:
        """Reset the client's side, and close the server's."""
        with contextlib.suppress(OSError, AttributeError):  # it is closed already
            self._client[1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        for _, writer in filter(None, (self._client, self._server)):
            writer.transport.abort()

    async def forward(self, proxy: Proxy) -> None:
        """Forward both ways until either side ends."""
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        # Read all the time, so that it is seen when the client leaves, also while nothing is forwarded.
        listening = asyncio.create_task(self._listen(chunks))
        tasks = [listening]
        try:
            self._server = await proxy.connect()
            tasks += [asyncio.create_task(self._ask(proxy, chunks)), asyncio.create_task(self._answer(proxy))]
            await asyncio.wait(tasks[1:], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, chunks: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        while not self.left:
            try:
                data = await self._client[0].read(_CHUNK)
            except OSError:
                data = b""
            self._last = b""
            self.left = not data
            chunks.put_nowait((loop.time(), data))

    async def _ask(self, proxy: Proxy, chunks: asyncio.Queue[tuple[float, bytes]]) -> None:
        assert self._server is not None, "forwarded once it is there"
        _, writer = self._server
        while True:
            since, data = await chunks.get()
            await proxy.hold(since, answer=False)
            if not data:
                return
            writer.write(data)
            await writer.drain()

    async def _answer(self, proxy: Proxy) -> None:
        assert self._server is not None, "forwarded once it is there"
        (reader, _), (_, writer) = self._server, self._client
        loop = asyncio.get_running_loop()
        while data := await reader.read(_CHUNK):
            await proxy.hold(loop.time(), answer=True)
            self._last = data[-len(_IDLE) :]
            writer.write(data)
            await writer.drain()
        await proxy.hold(loop.time(), answer=True)


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((_HOST, port))
    return sock


def _endpoint(url: URL) -> str | tuple[str, int]:
    """Where libpq would connect to: the path of a Unix socket, or host and port."""
    options = {name: value for name, value in url.query.items() if isinstance(value, str)}
    host = url.host or options.get("host") or "localhost"
    port = url.port or int(options.get("port", "5432"))
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
