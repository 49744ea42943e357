"""The demo service on FastAPI. What it answers is decided in `pooldrain.demo` and `pooldrain.status`."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from pooldrain import answers, demo, problems, status
from pooldrain.answers import Answer
from pooldrain.in_flight import CURRENT_REQUEST, route_label
from pooldrain.sqla.errors import explain_error
from pooldrain.sqla.sqlite import add_wait_function
from pooldrain_async.middleware import send_answer
from pooldrain_async.runner import Runner


class Demo:
    """The routes, one method each."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._pool = runner.pool
        self._engine = runner.pool.engine
        self._work = text(demo.work_statement(runner.pool.url.dialect))
        self._leaked: list[AsyncConnection] = []
        if runner.pool.url.dialect == "sqlite":
            event.listen(self._engine.sync_engine, "connect", add_wait_function)

    async def prepare(self) -> None:
        """Make the demo's table."""
        async with self._engine.begin() as connection:
            for statement in demo.prepare_statements(self._pool.url.dialect):
                await connection.execute(text(statement))

    async def root(self, request: Request) -> Answer:
        return demo.root(self._pool.status)

    async def db_test(self, request: Request) -> Answer:
        async with self._engine.connect() as connection:
            result = (await connection.execute(text(demo.SELECT_ONE))).scalar_one()
        return demo.db_test(result, self._pool.status)

    async def db_test_leak(self, request: Request) -> Answer:
        collect = demo.parse_flag("collect", _query(request, "collect"))
        if isinstance(collect, Answer):
            return collect
        connection = await self._engine.connect()  # the leak: nobody closes it
        result = (await connection.execute(text(demo.SELECT_ONE))).scalar_one()
        answer = demo.db_test_leak(result, self._pool.status)
        if collect:
            del connection
            gc.collect()
        else:
            self._leaked.append(connection)  # held until the process ends, so that it is a leak of the same kind always
        return answer

    async def pool_status(self, request: Request) -> Answer:
        detail = demo.parse_flag("detail", _query(request, "detail"))
        if isinstance(detail, Answer):
            return detail
        runner = self._runner
        page = status.pool_status_page(
            self._pool.status,
            connection_leak=runner.check_threshold(),
            accepting=runner.gate.accepting,
            active=runner.unanswered(),
        )
        if detail:
            page |= status.pool_status_detail(self._pool.holdings(), self._pool.ledger.counts, runner.phase)
        return answers.answer(page)

    async def work(self, request: Request) -> Answer:
        ms = demo.parse_ms(_query(request, "ms"))
        if isinstance(ms, Answer):
            return ms
        async with self._engine.connect() as connection:
            await connection.execute(self._work, {"seconds": ms / 1000})
        return demo.worked(ms)

    async def create_order(self, request: Request) -> Answer:
        order = demo.parse_order(await _body(request))
        if isinstance(order, Answer):
            return order
        async with self._engine.begin() as connection:
            created = (await connection.execute(text(demo.INSERT_ORDER), order.as_dict())).rowcount
            row = (await connection.execute(text(demo.SELECT_ORDER), {"id": order.id})).one()
        return demo.order_stored(order, demo.Order(*row), created=created == 1)

    async def get_order(self, request: Request) -> Answer:
        order_id = request.path_params["order_id"]
        async with self._engine.connect() as connection:
            row = (await connection.execute(text(demo.SELECT_ORDER), {"id": order_id})).one_or_none()
        return demo.order_missing(order_id) if row is None else demo.order_found(demo.Order(*row))

    async def count_orders(self, request: Request) -> Answer:
        async with self._engine.connect() as connection:
            count = (await connection.execute(text(demo.COUNT_ORDERS))).scalar_one()
        return demo.orders_counted(count)

    async def livez(self, request: Request) -> Answer:
        return answers.livez()

    async def readyz(self, request: Request) -> Answer:
        return answers.readyz(self._runner.phase)


def create_app(runner: Runner) -> ASGIApp:
    """The demo service as an ASGI application, over `runner`'s pool, without its gate."""
    service = Demo(runner)
    runner.on_open(service.prepare)
    runner.answer_always(demo.STATUS_PATH)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for path, name, methods in demo.ROUTES:
        app.router.add_route(path, _responding(getattr(service, name)), methods=list(methods))
    app.add_exception_handler(HTTPException, _explain)
    app.add_middleware(_ProblemMiddleware)
    return app


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path: str = request.scope["path"]  # not request.url.path, which drops what a URL must not contain
    if error.status_code == 404:
        return _response(problems.not_found(path))
    if error.status_code == 405:
        return _response(problems.method_not_allowed(request.method, path, demo.allowed_methods(path)))
    return _response(problems.problem(error.status_code, error.detail))


class _ProblemMiddleware:
    """Turns errors into problem documents.

    As middleware, because Starlette raises again what an exception handler for everything has answered, and
    uvicorn logs it a second time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            pass  # in the middle of its request: there is nobody to answer
        except Exception as error:
            request = CURRENT_REQUEST.get()  # the gate has seen whether its answer has begun
            if scope["type"] != "http" or (request is not None and request.status is not None):
                raise
            await send_answer(explain_error(error, route_label(scope["method"], scope["path"])), send)


def _responding(handler: Callable[[Request], Awaitable[Answer]]) -> Callable[[Request], Awaitable[Response]]:
    """`handler`, with its answer as Starlette wants it."""

    async def respond(request: Request) -> Response:
        return _response(await handler(request))

    return respond


def _response(answer: Answer) -> Response:
    headers = dict(answer.headers)
    if answer.close:
        headers["connection"] = "close"
    return Response(answer.body, answer.status, headers)


def _query(request: Request, name: str) -> str | None:
    """A query parameter; the first, if it is given twice, as in Flask."""
    values = request.query_params.getlist(name)
    return values[0] if values else None


async def _body(request: Request) -> bytes:
    """The body, read no further than what shows that it is too large."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > demo.MAX_BODY:
            break
    return body
