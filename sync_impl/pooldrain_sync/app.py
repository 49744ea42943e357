"""The demo service on Flask. What it answers is decided in `pooldrain.demo` and `pooldrain.status`."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, request
from sqlalchemy import Connection, event, text
from werkzeug.exceptions import HTTPException

from pooldrain import answers, demo, problems, status
from pooldrain.answers import Answer
from pooldrain.in_flight import route_label
from pooldrain.sqla.errors import explain_error
from pooldrain.sqla.sqlite import add_wait_function
from pooldrain_sync.middleware import close_connection
from pooldrain_sync.runner import Runner


class Demo:
    """The routes, one method each."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._pool = runner.pool
        self._engine = runner.pool.engine
        self._work = text(demo.work_statement(runner.pool.url.dialect))
        self._leaked: list[Connection] = []
        if runner.pool.url.dialect == "sqlite":
            event.listen(self._engine, "connect", add_wait_function)

    def prepare(self) -> None:
        """Make the demo's table."""
        with self._engine.begin() as connection:
            for statement in demo.prepare_statements(self._pool.url.dialect):
                connection.execute(text(statement))

    def root(self) -> Answer:
        return demo.root(self._pool.status)

    def db_test(self) -> Answer:
        with self._engine.connect() as connection:
            result = connection.execute(text(demo.SELECT_ONE)).scalar_one()
        return demo.db_test(result, self._pool.status)

    def db_test_leak(self) -> Answer:
        collect = demo.parse_flag("collect", request.args.get("collect"))
        if isinstance(collect, Answer):
            return collect
        connection = self._engine.connect()  # the leak: nobody closes it
        result = connection.execute(text(demo.SELECT_ONE)).scalar_one()
        answer = demo.db_test_leak(result, self._pool.status)
        if collect:
            del connection
            gc.collect()
        else:
            self._leaked.append(connection)  # held until the process ends, so that it is a leak of the same kind always
        return answer

    def pool_status(self) -> Answer:
        detail = demo.parse_flag("detail", request.args.get("detail"))
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

    def work(self) -> Answer:
        ms = demo.parse_ms(request.args.get("ms"))
        if isinstance(ms, Answer):
            return ms
        with self._engine.connect() as connection:
            connection.execute(self._work, {"seconds": ms / 1000})
        return demo.worked(ms)

    def create_order(self) -> Answer:
        order = demo.parse_order(request.stream.read(demo.MAX_BODY + 1))
        if isinstance(order, Answer):
            return order
        with self._engine.begin() as connection:
            created = connection.execute(text(demo.INSERT_ORDER), order.as_dict()).rowcount
            row = connection.execute(text(demo.SELECT_ORDER), {"id": order.id}).one()
        return demo.order_stored(order, demo.Order(*row), created=created == 1)

    def get_order(self, order_id: str) -> Answer:
        with self._engine.connect() as connection:
            row = connection.execute(text(demo.SELECT_ORDER), {"id": order_id}).one_or_none()
        return demo.order_missing(order_id) if row is None else demo.order_found(demo.Order(*row))

    def count_orders(self) -> Answer:
        with self._engine.connect() as connection:
            count = connection.execute(text(demo.COUNT_ORDERS)).scalar_one()
        return demo.orders_counted(count)

    def livez(self) -> Answer:
        return answers.livez()

    def readyz(self) -> Answer:
        return answers.readyz(self._runner.phase)


def create_app(runner: Runner) -> Flask:
    """The demo service as a WSGI application, over `runner`'s pool, without its gate."""
    service = Demo(runner)
    runner.on_open(service.prepare)
    runner.answer_always(demo.STATUS_PATH)
    app = Flask("pooldrain_demo", static_folder=None)
    app.url_map.merge_slashes = False  # a path is what was asked for
    for path, name, methods in demo.ROUTES:
        rule = path.replace("{", "<").replace("}", ">")
        handler = _responding(getattr(service, name))
        app.add_url_rule(rule, name, handler, methods=methods, provide_automatic_options=False)
    app.before_request(_refuse_leading_slashes)
    app.register_error_handler(Exception, _responding(_explain))
    return app


def _path() -> str:
    """The path as it was asked for; `request.path` has one slash less where it began with two."""
    path: str = request.environ["PATH_INFO"]
    return path.encode("latin-1").decode("utf-8", "replace")


def _refuse_leading_slashes() -> Response | None:
    """Werkzeug would route `//db-test` to `/db-test`."""
    return _response(problems.not_found(_path())) if _path().startswith("//") else None


def _explain(error: Exception) -> Answer:
    path = _path()
    if not isinstance(error, HTTPException):
        return explain_error(error, route_label(request.method, path))
    if error.code == 404:
        return problems.not_found(path)
    if error.code == 405:
        return problems.method_not_allowed(request.method, path, demo.allowed_methods(path))
    return problems.problem(error.code or 500, error.name)


def _responding(handler: Callable[..., Answer]) -> Callable[..., Response]:
    """`handler`, with its answer as Flask wants it."""

    def respond(*args: Any, **kwargs: Any) -> Response:
        return _response(handler(*args, **kwargs))

    return respond


def _response(answer: Answer) -> Response:
    if answer.close:
        close_connection(request.environ)
    return Response(answer.body, answer.status_line, answer.headers)
