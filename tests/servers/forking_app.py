"""Applications whose handlers fork, and that use their engine before their own workers are forked.

`create_sync` and `create_async`, for `--app`. `/backend` tells which session answers; `/fork` asks a child, while its
parent holds a connection in a transaction; `/multiprocessing` does so without; `/terminate` ends a child by SIGTERM;
`/outlive` leaves one behind that does not end.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import fastapi
import flask
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

import pooldrain_async.runner
import pooldrain_sync.runner

BACKEND = text("SELECT pg_backend_pid()")
USED_BEFORE = "USED_BEFORE_FORK"  # a variable: use the engine where the application is made


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` says in a forked child, which then ends with as much of Python's farewell as it can."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, json.dumps(work()).encode())
            gc.collect()
            atexit._run_exitfuncs()
        except BaseException:  # noqa: BLE001 - whatever it is, the parent tells the test
            os.write(writer, json.dumps({"error": traceback.format_exc()}).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        said: dict[str, Any] = json.load(told)
    os.waitpid(child, 0)
    return said


def in_process(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The same by multiprocessing."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=lambda: writer.send(work()))
    process.start()
    said: dict[str, Any] = reader.recv()
    process.join()
    return said


def terminated() -> dict[str, Any]:
    """How a child ends that is told to."""
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    return {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}


def outliving() -> dict[str, Any]:
    """A child that stays when its service has gone."""
    child = os.fork()
    if not child:
        os.setsid()
        os.closerange(0, 3)
        while True:
            signal.pause()
    return {"pid": child}


def books(runner: pooldrain_sync.runner.Runner | pooldrain_async.runner.Runner) -> dict[str, Any]:
    """The pool and the ledger as they are."""
    pool = runner.pool
    return {"outstanding": len(pool.holdings()), "opened": pool.tracker.opened, **pool.status.as_dict()}


def create_sync(runner: pooldrain_sync.runner.Runner) -> flask.Flask:
    """On threads."""
    app = flask.Flask("forking")
    engine = runner.pool.engine

    def backend() -> dict[str, Any]:
        with engine.connect() as connection:
            return {"pid": os.getpid(), "backend": connection.execute(BACKEND).scalar_one()}

    def as_child() -> dict[str, Any]:
        return {"books": books(runner), **backend()}

    def fork() -> dict[str, Any]:
        with engine.connect() as connection:  # and begins a transaction
            before = connection.execute(BACKEND).scalar_one()

            def child() -> dict[str, Any]:
                with connection:  # the parent's: it is of no use, and closing it does no harm
                    try:
                        connection.execute(BACKEND)
                    except SQLAlchemyError as error:
                        return {"refused": str(error), **as_child()}
                return {}

            return {"child": in_child(child), "before": before, "after": connection.execute(BACKEND).scalar_one()}

    for route, handler in {
        "/backend": backend,
        "/fork": fork,
        "/multiprocessing": lambda: in_process(as_child),
        "/terminate": terminated,
        "/outlive": outliving,
    }.items():
        app.add_url_rule(route, route, handler)
    if USED_BEFORE in os.environ:
        print(json.dumps({"event": "used_before", "message": "", "level": "info", **backend()}), file=sys.stderr)  # noqa: T201
    return app


def create_async(runner: pooldrain_async.runner.Runner) -> fastapi.FastAPI:
    """On asyncio."""
    app = fastapi.FastAPI()
    engine = runner.pool.engine

    async def backend() -> dict[str, Any]:
        async with engine.connect() as connection:
            return {"pid": os.getpid(), "backend": (await connection.execute(BACKEND)).scalar_one()}

    def as_child() -> dict[str, Any]:
        return {"books": books(runner), **asyncio.run(backend())}

    async def fork() -> dict[str, Any]:
        async with engine.connect() as connection:  # and begins a transaction
            before = (await connection.execute(BACKEND)).scalar_one()

            async def refused() -> str:
                try:  # the parent's: it is of no use, and closing it does no harm
                    await connection.execute(BACKEND)
                except SQLAlchemyError as error:
                    return str(error)
                finally:
                    await connection.close()
                return ""

            said = in_child(lambda: {"refused": asyncio.run(refused()), **as_child()})
            return {"child": said, "before": before, "after": (await connection.execute(BACKEND)).scalar_one()}

    async def process() -> dict[str, Any]:
        return in_process(as_child)

    async def terminate() -> dict[str, Any]:
        return terminated()

    async def outlive() -> dict[str, Any]:
        return outliving()

    for route, handler in {
        "/backend": backend,
        "/fork": fork,
        "/multiprocessing": process,
        "/terminate": terminate,
        "/outlive": outlive,
    }.items():
        app.add_api_route(route, handler)
    if USED_BEFORE in os.environ:
        said = asyncio.run(backend())
        print(json.dumps({"event": "used_before", "message": "", "level": "info", **said}), file=sys.stderr)  # noqa: T201
    return app
