"""An application to look inside of: `create_sync` and `create_async`.

`/hang` keeps a connection in a query, `/spin` has forty threads compute, `/block` (asyncio) keeps the whole loop.
"""

from __future__ import annotations

import threading
import time

import fastapi
import flask
from sqlalchemy import text

import pooldrain_async.runner
import pooldrain_sync.runner

HANG = text("SELECT pg_sleep(60)")
LONG = 60.0  # seconds: longer than any test waits


def compute(seconds: float) -> int:
    """Use the interpreter for so long."""
    until, turns = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        turns += 1
    return turns


def spin(seconds: float) -> str:
    """Have forty threads use the interpreter for so long."""
    for _ in range(40):
        threading.Thread(target=compute, args=(seconds,), daemon=True).start()
    return "they do"


def create_sync(runner: pooldrain_sync.runner.Runner) -> flask.Flask:
    """On threads."""
    app = flask.Flask("inside")

    @app.get("/hang")
    def hang() -> str:
        with runner.pool.engine.connect() as connection:
            connection.execute(HANG)
        return "at last"

    @app.get("/spin")
    def spinning() -> str:
        return spin(float(flask.request.args["seconds"]))

    return app


def create_async(runner: pooldrain_async.runner.Runner) -> fastapi.FastAPI:
    """On asyncio."""
    app = fastapi.FastAPI()

    @app.get("/hang")
    async def hang() -> str:
        async with runner.pool.engine.connect() as connection:
            await connection.execute(HANG)
        return "at last"

    @app.get("/spin")
    async def spinning(seconds: float) -> str:
        return spin(seconds)

    @app.get("/block")
    async def block(seconds: float) -> str:
        return str(compute(seconds))

    return app
