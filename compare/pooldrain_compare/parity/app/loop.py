"""The scenarios' application for the asyncio backend: the demo, and what only scenarios need.

`--app pooldrain_compare.parity.app.loop:create_app`; see `app.routes`, which decides.
"""

# ruff: noqa: D102 - the handlers are explained by the routes in `app.routes`

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any

from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util import await_only
from starlette.background import BackgroundTask
from starlette.types import ASGIApp, Receive, Scope, Send

from pooldrain.answers import Answer
from pooldrain.ledger import hold_as
from pooldrain.phases import Phase
from pooldrain_async.app import create_app as create_demo
from pooldrain_async.middleware import send_answer
from pooldrain_async.runner import Runner
from pooldrain_compare.parity.app import routes
from pooldrain_compare.parity.app.routes import Given


class Scenarios:
    """The routes, one method each."""

    def __init__(self, runner: Runner, second: AsyncEngine | None) -> None:
        self._engine = runner.pool.engine
        self._second = second
        self._wait = text(routes.wait_statement(runner.pool.url.dialect))
        self._kept: list[AsyncConnection] = []
        self._tasks: set[asyncio.Task[object]] = set()
        if runner.pool.url.dialect == "sqlite":
            event.listen(self._engine.sync_engine, "connect", routes.add_wait_function)

    async def query(self, given: Given) -> Answer:
        async with self._engine.connect() as connection:
            await connection.execute(self._wait, {"latch": given.number})
        return routes.done("query")

    async def hold(self, given: Given) -> Answer:
        async with self._engine.connect():
            await self._wait_at(given)
        return routes.done("hold")

    async def late_checkout(self, given: Given) -> Answer:
        await self._wait_at(given)
        async with self._engine.connect() as connection:
            await connection.execute(text(routes.SELECT_ONE))
        return routes.done("late checkout")

    async def reserve(self, given: Given) -> Answer:
        async with self._engine.begin() as connection:
            await connection.execute(text(routes.INSERT), given.row)
            await connection.execute(self._wait, {"latch": given.number})
        return routes.reserved(given)

    async def fail(self, given: Given) -> Answer:
        async with self._engine.connect() as connection:
            await connection.execute(text(routes.SELECT_ONE))
            await self._wait_at(given)
            raise routes.failure()

    async def stream(self, given: Given) -> Response:
        async def halves() -> AsyncIterator[bytes]:
            async with self._engine.connect() as connection:
                await connection.execute(text(routes.SELECT_ONE))
                yield routes.FIRST_HALF
                await connection.execute(self._wait, {"latch": given.number})
                yield routes.SECOND_HALF

        return StreamingResponse(halves(), headers={"content-type": routes.STREAM_TYPE})

    async def pinned(self, given: Given) -> Response:
        async def halves() -> AsyncIterator[bytes]:
            async with self._engine.connect() as connection:
                await connection.execute(text(routes.SELECT_ONE))
                yield routes.FIRST_HALF
                await self._wait_at(given)
                yield routes.SECOND_HALF

        return StreamingResponse(halves(), headers={"content-type": routes.STREAM_TYPE})

    async def short(self, given: Given) -> Response:
        return self._announcing(routes.FIRST_HALF)

    async def long(self, given: Given) -> Response:
        return self._announcing(routes.FIRST_HALF, b"\n", routes.SECOND_HALF)

    def _announcing(self, *chunks: bytes) -> Response:
        headers = {"content-type": routes.STREAM_TYPE, "content-length": str(routes.ANNOUNCED)}
        return StreamingResponse(iter(chunks), headers=headers)

    async def big(self, given: Given) -> Response:
        return Response(bytes(routes.BIG), headers={"content-type": routes.STREAM_TYPE})

    async def endless(self, given: Given) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            async with self._engine.connect() as connection:
                await connection.execute(text(routes.SELECT_ONE))
                await connection.commit()  # in no transaction, it is not pinned
                while True:
                    yield routes.LINE
                    await asyncio.sleep(routes.LINE_PAUSE)

        return StreamingResponse(lines(), headers={"content-type": routes.STREAM_TYPE})

    async def events(self, given: Given) -> Response:
        async def events() -> AsyncIterator[bytes]:
            async with self._engine.connect() as connection:
                await connection.execute(text(routes.SELECT_ONE))
            while True:
                yield routes.EVENT
                await asyncio.sleep(routes.LINE_PAUSE)

        return StreamingResponse(events(), headers={"content-type": routes.EVENTS_TYPE})

    async def stubborn(self, given: Given) -> Answer:
        async with self._engine.connect():
            waiting = asyncio.ensure_future(self._wait_at(given))
            while not waiting.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.shield(waiting)
        return routes.done("stubborn")

    async def background(self, given: Given) -> Answer:
        async def report() -> None:
            with hold_as(routes.BACKGROUND_NAME):
                await self.hold(given)

        self._leave(report(), copy_context())
        return routes.done("background")

    async def nightly(self, given: Given) -> Answer:
        async def report() -> None:
            with hold_as(routes.BACKGROUND_NAME):
                await self.reserve(given)

        self._leave(report(), copy_context())
        return routes.done("nightly")

    async def outside(self, given: Given) -> Answer:
        self._leave(self.reserve(given), Context())  # as a thread has: it knows no request
        return routes.done("outside")

    async def listener(self, given: Given) -> Answer:
        async def listen() -> None:
            connection = await self._engine.connect()
            await connection.execute(text(routes.SELECT_ONE))
            await connection.commit()
            self._kept.append(connection)
            await self._wait_at(given)

        self._leave(listen(), Context())
        return routes.done("listener")

    def _leave(self, work: Coroutine[Any, Any, object], context: Context) -> None:
        task = asyncio.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def after_response(self, given: Given) -> Response:
        response = _response(routes.done("after response"))
        response.background = BackgroundTask(self.hold, given)
        return response

    async def after_query(self, given: Given) -> Response:
        response = _response(routes.done("after query"))
        response.background = BackgroundTask(self.query, given)
        return response

    async def keep(self, given: Given) -> Answer:
        connection = await self._engine.connect()
        await connection.execute(text(routes.SELECT_ONE))
        self._kept.append(connection)
        return routes.done("keep")

    async def give_back(self, given: Given) -> Answer:
        await self._wait_at(given)
        while self._kept:
            await self._kept.pop().close()
        return routes.done("return")

    async def second(self, given: Given) -> Answer:
        if self._second is None:
            return routes.missing("/second")
        async with self._second.connect() as connection:
            await connection.execute(self._wait, {"latch": given.number})
        return routes.done("second")

    async def second_leak(self, given: Given) -> Answer:
        if self._second is None:
            return routes.missing("/second-leak")
        connection = await self._second.connect()
        await connection.execute(text(routes.SELECT_ONE))
        self._kept.append(connection)
        return routes.done("second leak")

    async def _wait_at(self, given: Given) -> None:
        if given.latch is not None:
            await wait_at(given.latch)


async def wait_at(name: str) -> None:
    """Wait in a task until the latch opens."""
    reader, writer = await asyncio.open_connection(*routes.latches_address())
    try:
        writer.write(routes.latch_line(name))
        await reader.read(1)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def create_app(runner: Runner, second: AsyncEngine | None = None) -> ASGIApp:
    """The demo's routes and the scenarios'."""
    app = create_demo(runner)
    assert isinstance(app, FastAPI)
    return _with_scenarios(app, runner, second)


def create_plain(runner: Runner) -> ASGIApp:
    """The scenarios' routes in an application that handles no error: what it lets through, pooldrain explains."""
    create_demo(runner)  # which makes its table
    return _with_scenarios(FastAPI(docs_url=None, redoc_url=None, openapi_url=None), runner)


def _with_scenarios(app: FastAPI, runner: Runner, second: AsyncEngine | None = None) -> ASGIApp:
    runner.answer_always(routes.WORKER_PATH)
    scenarios = Scenarios(runner, second)
    for path, name, methods in routes.ROUTES:
        app.router.add_route(path, _responding(getattr(scenarios, name)), methods=list(methods))
    app.router.add_websocket_route(routes.TALK_PATH, _talk)
    return _telling_worker(app)


async def _talk(websocket: WebSocket) -> None:
    """Say again what is said."""
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            await websocket.send_text(await websocket.receive_text())


def create_bare(runner: Runner) -> ASGIApp:
    """The same without the demo's table, so that the start uses no connection but the pool's own."""
    app = create_app(runner)
    runner._hooks.clear()
    return app


def create_slow_start(runner: Runner) -> ASGIApp:
    """The same; its start waits at a latch."""
    runner.on_open(lambda: wait_at(routes.START_LATCH))
    return create_app(runner)


def create_slow_close(runner: Runner) -> ASGIApp:
    """The same; closing a connection waits at a latch."""

    def closing(connection: Any, record: object) -> None:
        await_only(wait_at(routes.CLOSE_LATCH))

    event.listen(runner.pool.engine.sync_engine, "close", closing, insert=True)  # before our own counting
    return create_app(runner)


def create_slow_stop(runner: Runner) -> ASGIApp:
    """The same; with the pool closed, and before the listener is, everything waits at a latch."""
    enter = runner.enter

    def entering(phase: Phase) -> None:
        enter(phase)
        if phase is Phase.STOPPING:
            routes.wait_at(routes.STOP_LATCH)

    vars(runner)["enter"] = entering
    return create_app(runner)


def create_with_second_engine(runner: Runner) -> ASGIApp:
    """The same, with a second engine to the same database."""
    second = runner.add_pool(runner.pool.url, routes.SECOND_POOL, routes.SECOND_LEAKS)
    return create_app(runner, second.engine)


def create_adopted(runner: Runner) -> ASGIApp:
    """The same, with a second engine that the application makes itself, as if it knew of no runner."""
    made = create_async_engine(
        runner.pool.url.async_url, pool_size=2, max_overflow=0, pool_pre_ping=True, logging_name=routes.ADOPTED
    )
    return create_app(runner, made)


def create_quick_teardown(runner: Runner) -> ASGIApp:
    """The same; at its end it writes a row."""

    async def write() -> None:
        async with runner.pool.engine.begin() as connection:
            await connection.execute(text(routes.INSERT), {"id": routes.AT_SHUTDOWN})

    runner.on_shutdown(routes.told_alike(write))
    return create_app(runner)


def create_slow_teardown(runner: Runner) -> ASGIApp:
    """The same; its end waits at a latch."""

    async def end() -> None:
        await wait_at(routes.TEARDOWN_LATCH)

    runner.on_shutdown(routes.told_alike(end))
    return create_app(runner)


def create_failing_teardown(runner: Runner) -> ASGIApp:
    """The same; a function of its end raises, and another one writes."""

    async def failing() -> None:
        raise routes.failure()

    app = create_quick_teardown(runner)
    runner.on_shutdown(routes.told_alike(failing))
    return app


def _responding(handler: Callable[[Given], Awaitable[Answer | Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        answer = await handler(Given(request.query_params.get))
        return answer if isinstance(answer, Response) else _response(answer)

    return respond


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers))


def _telling_worker(app: ASGIApp) -> ASGIApp:
    async def telling(scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] == "http" and scope["path"] == routes.WORKER_PATH
        if asked:
            await send_answer(routes.worker_answer(), send)
            return
        await app(scope, receive, send)

    return telling
