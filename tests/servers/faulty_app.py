"""Applications that do what applications should not: `create_sync` and `create_async`, for `--app`.

`/stream` idles in a transaction while it streams, `/export` queries as it does; `/short`, `/long` and `/broken` break
their responses' framing; `/unread` leaves a body unread; `/after`, `/after-last` and `/after-stuck` work on after their
answers, `/after-idle` (asyncio only) without a connection; `/raise` raises what a client wrote; `/hold` keeps its
thread or its task. At SIGUSR1 an exception is raised in the server's loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import fastapi
import flask
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from starlette.background import BackgroundTask

import pooldrain_async.runner
import pooldrain_sync.runner
from pooldrain import LeakPolicy, PoolPolicy
from pooldrain.sqla.database_url import DatabaseUrl

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SECOND_POOL = "SECOND_POOL"  # a variable: the file of a second pool's database

CHUNKS = 10
PAUSE = 0.25  # seconds between two chunks
SELECT = text("SELECT 42")
SLEEP = text("SELECT pg_sleep(:seconds)")
BROKEN = "the handler of the application's own signal fails"
FORGED = "first\nERROR forged \x1b[31m\x9b1m\u2028end"


def _second_pool(runner: Any) -> None:
    if path := os.environ.get(SECOND_POOL):
        runner.add_pool(DatabaseUrl.parse(f"sqlite:///{path}"), PoolPolicy(pool_size=1), LeakPolicy())


def _break(number: int, frame: object) -> None:
    """A signal handler that raises, into whatever the main thread does: the server's loop."""
    raise RuntimeError(BROKEN)


def _framings() -> dict[str, list[bytes]]:
    """Bodies of responses that announce ten bytes."""
    return {"short": [b"four"], "long": [b"0123456789", b"and more"], "long-at-once": [b"0123456789and more"]}


def create_sync(runner: pooldrain_sync.runner.Runner) -> flask.Flask:
    _second_pool(runner)
    signal.signal(signal.SIGUSR1, _break)
    app = flask.Flask(__name__)
    engine = runner.pool.engine

    @app.get("/livez")
    @app.get("/readyz")
    @app.get("/ok")
    def ok() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/hold")
    def hold() -> dict[str, bool]:
        with engine.connect() as connection:
            connection.execute(SLEEP, {"seconds": float(flask.request.args["seconds"])})
        return {"ok": True}

    @app.get("/stream")
    def stream() -> flask.Response:
        connection = engine.connect()
        connection.execute(SELECT)

        def body() -> Iterator[bytes]:
            with connection:
                for _ in range(CHUNKS):
                    yield b"x\n"
                    threading.Event().wait(PAUSE)

        return flask.Response(body(), headers={"Content-Length": str(2 * CHUNKS)})

    @app.get("/export")
    def export() -> flask.Response:
        def body() -> Iterator[bytes]:
            with engine.connect() as connection:
                for _ in range(CHUNKS):
                    connection.execute(SLEEP, {"seconds": PAUSE})
                    yield b"x\n"

        return flask.Response(body(), headers={"Content-Length": str(2 * CHUNKS)})

    @app.get("/framing/<kind>")
    def framing(kind: str) -> flask.Response:
        return flask.Response(iter(_framings()[kind]), headers={"Content-Length": "10"})

    @app.get("/bodiless/<int:status>")
    def bodiless(status: int) -> flask.Response:
        return flask.Response(b"", status, headers={"Content-Length": "10"})

    @app.route("/head", methods=["HEAD"])
    def head() -> flask.Response:
        return flask.Response(b"0123456789")

    @app.get("/broken")
    def broken() -> flask.Response:
        def body() -> Iterator[bytes]:
            yield b"four"
            raise ValueError(FORGED)

        return flask.Response(body(), headers={"Content-Length": "10"})

    @app.post("/unread")
    def unread() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/raise")
    def raising() -> dict[str, bool]:
        raise ValueError(FORGED)

    @app.get("/after")
    def after() -> flask.Response:
        response = flask.Response(b"done")
        seconds = float(flask.request.args["seconds"])

        @response.call_on_close
        def work() -> None:
            with engine.connect() as connection:
                connection.execute(SLEEP, {"seconds": seconds})

        return response

    @app.get("/after-last")
    def after_last() -> flask.Response:
        seconds = float(flask.request.args["seconds"])

        def body() -> Iterator[bytes]:
            yield b"done"
            with engine.connect() as connection:
                connection.execute(SLEEP, {"seconds": seconds})

        return flask.Response(body(), headers={"Content-Length": "4"})

    @app.get("/after-stuck")
    def after_stuck() -> flask.Response:
        response = flask.Response(b"done")
        seconds = float(flask.request.args["seconds"])
        response.call_on_close(lambda: threading.Event().wait(seconds))
        return response

    return app


def create_writing(runner: pooldrain_sync.runner.Runner) -> WSGIApplication:
    """An application that announces ten bytes, and writes as many as its path says, in PEP 3333's older way."""

    def writing(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "10")])
        for _ in range(int(environ["PATH_INFO"][1:])):
            write(b"x")
        return []

    return writing


def create_async(runner: pooldrain_async.runner.Runner) -> fastapi.FastAPI:
    _second_pool(runner)
    signal.signal(signal.SIGUSR1, _break)
    app = fastapi.FastAPI()
    engine = runner.pool.engine

    @app.get("/livez")
    @app.get("/readyz")
    @app.get("/ok")
    async def ok() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/hold")
    async def hold(seconds: float) -> dict[str, bool]:
        async with engine.connect() as connection:
            await connection.execute(SLEEP, {"seconds": seconds})
        return {"ok": True}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        connection = await engine.connect()
        await connection.execute(SELECT)

        async def body() -> AsyncIterator[bytes]:
            try:
                for _ in range(CHUNKS):
                    yield b"x\n"
                    await asyncio.sleep(PAUSE)
            finally:
                await connection.close()

        return StreamingResponse(body(), headers={"Content-Length": str(2 * CHUNKS)})

    @app.get("/export")
    async def export() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            async with engine.connect() as connection:
                for _ in range(CHUNKS):
                    await connection.execute(SLEEP, {"seconds": PAUSE})
                    yield b"x\n"

        return StreamingResponse(body(), headers={"Content-Length": str(2 * CHUNKS)})

    @app.get("/framing/{kind}")
    async def framing(kind: str) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            for chunk in _framings()[kind]:
                yield chunk

        return StreamingResponse(body(), headers={"Content-Length": "10"})

    @app.get("/bodiless/{status}")
    async def bodiless(status: int) -> fastapi.Response:
        return fastapi.Response(b"", status, headers={"Content-Length": "10"})

    @app.head("/head")
    async def head() -> fastapi.Response:
        return fastapi.Response(b"0123456789")

    @app.get("/broken")
    async def broken() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"four"
            raise ValueError(FORGED)

        return StreamingResponse(body(), headers={"Content-Length": "10"})

    @app.post("/unread")
    async def unread() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/raise")
    async def raising() -> dict[str, bool]:
        raise ValueError(FORGED)

    async def sleep(seconds: float) -> None:
        async with engine.connect() as connection:
            await connection.execute(SLEEP, {"seconds": seconds})

    @app.get("/after")
    async def after(seconds: float) -> fastapi.Response:
        return fastapi.Response(b"done", background=BackgroundTask(sleep, seconds))

    @app.get("/after-idle")
    async def after_idle(seconds: float) -> fastapi.Response:
        return fastapi.Response(b"done", background=BackgroundTask(asyncio.sleep, seconds))

    async def sleeping(seconds: float) -> AsyncIterator[None]:
        yield
        await sleep(seconds)

    @app.get("/after-last", dependencies=[fastapi.Depends(sleeping)])
    async def after_last() -> fastapi.Response:
        return fastapi.Response(b"done")

    async def stuck(seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(left)

    @app.get("/after-stuck")
    async def after_stuck(seconds: float) -> fastapi.Response:
        return fastapi.Response(b"done", background=BackgroundTask(stuck, seconds))

    return app
