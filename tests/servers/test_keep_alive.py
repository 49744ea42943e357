"""When uvicorn's adapter closes a connection on which nothing comes: it looks when the time is over."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from pooldrain.policy import HttpPolicy
from pooldrain_async.servers.uvicorn import DrainProtocol, DrainState

LIMIT = 0.3


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def connection() -> AsyncGenerator[tuple[DrainProtocol, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a uvicorn with a short limit."""
    config = uvicorn.Config(app, http=DrainProtocol, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    ours, theirs = socket.socketpair()
    protocol = DrainProtocol(config, DrainState(HttpPolicy()), {})
    protocol.timeout_keep_alive = LIMIT  # type: ignore[assignment]  # uvicorn's users give whole seconds
    await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, ours)
    reader, writer = await asyncio.open_connection(sock=theirs)
    try:
        yield protocol, reader, writer
    finally:
        writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """One request and its answer; when that came."""
    writer.write(REQUEST)
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    return time.monotonic()


async def closed(reader: asyncio.StreamReader) -> float:
    """When the other end was closed."""
    assert await reader.read() == b""
    return time.monotonic()


@on_a_loop
async def test_a_connection_is_closed_that_long_after_its_last_answer() -> None:
    async with connection() as (_, reader, writer):
        await ask(reader, writer)
        await asyncio.sleep(LIMIT / 2)  # what passes between two requests is time, and nothing else
        last = await ask(reader, writer)
        assert await closed(reader) - last >= LIMIT * 0.9


@on_a_loop
async def test_half_a_head_is_not_cut_off() -> None:
    async with connection() as (_, reader, writer):
        await ask(reader, writer)
        writer.write(REQUEST[:10])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(closed(reader), LIMIT * 2)
        writer.write(REQUEST[10:])
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


@on_a_loop
async def test_a_shorter_limit_counts_from_now_for_who_is_idle_already() -> None:
    async with connection() as (protocol, reader, writer):
        protocol.limit_idling(60)
        await ask(reader, writer)
        protocol.limit_idling(0)
        await asyncio.wait_for(closed(reader), 10)
