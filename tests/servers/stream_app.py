"""Applications with streams, without any framework but what makes a response a stream: for `--app`.

`/ticks` sends an event every few milliseconds, for ever; `/halves` sends each event in three parts; `/flood` sends
events bigger than any socket's buffers; `/idle` (asyncio only) sends one event, and then waits for ever; `/plain` is a
stream of another kind, of PLAIN parts; `/page` listens to `/who`, which sends its process's number. `/echo` and
`/stubborn` (asyncio only) are WebSockets; the second does not listen.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import fastapi
import flask
from fastapi.responses import HTMLResponse, StreamingResponse

PAUSE = 0.02  # seconds
PLAIN = 40  # parts
FLOOD = b"data: " + b"x" * 8_000_000 + b"\n\n"
EVENTS = "text/event-stream; charset=utf-8"

# Listens to the processes' numbers, and keeps them.
PAGE = """<!doctype html><title>events</title><script>
window.pids = [];
window.errors = 0;
const source = new EventSource("/who");
source.onmessage = event => window.pids.push(Number(event.data));
source.onerror = () => window.errors++;
</script>"""

closed: list[str] = []  # the streams whose generators were closed


def create_sync(runner: Any) -> flask.Flask:
    app = flask.Flask(__name__)

    def forever(*parts: bytes) -> Iterator[bytes]:
        try:
            while True:
                for part in parts:
                    yield part
                    time.sleep(PAUSE)
        finally:
            closed.append("")

    @app.get("/ticks")
    def ticks() -> flask.Response:
        return flask.Response(forever(b"data: tick\n\n"), content_type=EVENTS)

    @app.get("/halves")
    def halves() -> flask.Response:
        return flask.Response(forever(b"data: half", b" and half\n", b"\n"), content_type=EVENTS)

    @app.get("/flood")
    def flood() -> flask.Response:
        return flask.Response(forever(FLOOD), content_type=EVENTS)

    @app.get("/page")
    def page() -> str:
        return PAGE

    @app.get("/who")
    def who() -> flask.Response:
        return flask.Response(forever(b"retry: 50\ndata: %d\n\n" % os.getpid()), content_type=EVENTS)

    @app.get("/plain")
    def plain() -> flask.Response:
        def parts() -> Iterator[bytes]:
            for _ in range(PLAIN):
                yield b"part\n\n"
                time.sleep(PAUSE)

        return flask.Response(parts(), content_type="text/plain")

    @app.get("/closed")
    def how_many() -> dict[str, int]:
        return {"closed": len(closed)}

    return app


def create_async(runner: Any) -> fastapi.FastAPI:
    app = fastapi.FastAPI()

    async def forever(*parts: bytes) -> AsyncIterator[bytes]:
        try:
            while True:
                for part in parts:
                    yield part
                    await asyncio.sleep(PAUSE)
        finally:
            closed.append("")

    @app.get("/ticks")
    async def ticks() -> StreamingResponse:
        return StreamingResponse(forever(b"data: tick\n\n"), media_type="text/event-stream")

    @app.get("/halves")
    async def halves() -> StreamingResponse:
        return StreamingResponse(forever(b"data: half", b" and half\n", b"\n"), media_type="text/event-stream")

    @app.get("/flood")
    async def flood() -> StreamingResponse:
        return StreamingResponse(forever(FLOOD), media_type="text/event-stream")

    @app.websocket("/echo")
    async def echo(websocket: fastapi.WebSocket) -> None:
        await websocket.accept()
        with suppress(fastapi.WebSocketDisconnect):
            while True:
                await websocket.send_text(await websocket.receive_text())

    @app.websocket("/stubborn")
    async def stubborn(websocket: fastapi.WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await asyncio.Event().wait()

    @app.get("/idle")
    async def idle() -> StreamingResponse:
        async def one() -> AsyncIterator[bytes]:
            yield b"data: tick\n\n"
            await asyncio.Event().wait()

        return StreamingResponse(one(), media_type="text/event-stream")

    @app.get("/page")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE)

    @app.get("/who")
    async def who() -> StreamingResponse:
        return StreamingResponse(forever(b"retry: 50\ndata: %d\n\n" % os.getpid()), media_type="text/event-stream")

    @app.get("/plain")
    async def plain() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(PLAIN):
                yield b"part\n\n"
                await asyncio.sleep(PAUSE)

        return StreamingResponse(parts(), media_type="text/plain")

    return app
