"""Applications whose handlers hang where nobody can end them, and applications without a framework.

`create_sync` and `create_async`: `/stuck` holds a connection and heeds nothing; `/block`, on asyncio, keeps the whole
loop. `create_plain_sync` and `create_plain_async` read a body and answer its length, and catch nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import fastapi
import flask
from sqlalchemy import text
from starlette.types import ASGIApp, Receive, Scope, Send

import pooldrain_async.runner
import pooldrain_sync.runner

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LONG = 60.0  # seconds: longer than any test waits
SELECT = text("SELECT 'stuck'")


def create_sync(runner: pooldrain_sync.runner.Runner) -> flask.Flask:
    """On threads."""
    app = flask.Flask("stuck")

    @app.get("/livez")
    def livez() -> str:
        return "alive"

    @app.get("/stuck")
    def stuck() -> str:
        with runner.pool.engine.connect() as connection:
            connection.execute(SELECT)
            time.sleep(LONG)
        return "at last"

    return app


def create_async(runner: pooldrain_async.runner.Runner) -> fastapi.FastAPI:
    """On asyncio."""
    app = fastapi.FastAPI()

    @app.get("/livez")
    async def livez() -> str:
        return "alive"

    @app.get("/stuck")
    async def stuck() -> str:
        until = time.monotonic() + LONG
        async with runner.pool.engine.connect() as connection:
            await connection.execute(SELECT)
            while (left := until - time.monotonic()) > 0:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(left)
        return "at last"

    @app.get("/block")
    async def block() -> str:
        time.sleep(LONG)
        return "at last"

    return app


def create_plain_sync(runner: pooldrain_sync.runner.Runner) -> WSGIApplication:
    """On threads, without a framework."""

    def plain(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        read = len(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(str(read))))])
        return [str(read).encode()]

    return plain


def create_plain_async(runner: pooldrain_async.runner.Runner) -> ASGIApp:
    """On asyncio, without a framework."""

    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")  # how ASGI wants it said
        read, more = 0, True
        while more:
            message = await receive()
            read, more = read + len(message.get("body", b"")), message.get("more_body", False)
        length = str(len(str(read))).encode()
        headers = [(b"content-type", b"text/plain"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": str(read).encode()})

    return plain
