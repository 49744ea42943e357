"""The scenarios' application for the threaded backend: the demo, and what only scenarios need.

`--app pooldrain_compare.parity.app.threads:create_app`; see `app.routes`, which decides.
"""

# ruff: noqa: D102 - the handlers are explained by the routes in `app.routes`

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request
from sqlalchemy import Connection, Engine, create_engine, event, text

from pooldrain.answers import Answer
from pooldrain.ledger import hold_as
from pooldrain.phases import Phase
from pooldrain_compare.parity.app import routes
from pooldrain_compare.parity.app.routes import Given, wait_at
from pooldrain_sync.app import create_app as create_demo
from pooldrain_sync.middleware import send
from pooldrain_sync.runner import Runner

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Scenarios:
    """The routes, one method each."""

    def __init__(self, runner: Runner, second: Engine | None) -> None:
        self._engine = runner.pool.engine
        self._second = second
        self._wait = text(routes.wait_statement(runner.pool.url.dialect))
        self._kept: list[Connection] = []
        if runner.pool.url.dialect == "sqlite":
            event.listen(self._engine, "connect", routes.add_wait_function)

    def query(self, given: Given) -> Answer:
        with self._engine.connect() as connection:
            connection.execute(self._wait, {"latch": given.number})
        return routes.done("query")

    def hold(self, given: Given) -> Answer:
        with self._engine.connect():
            self._wait_at(given)
        return routes.done("hold")

    def late_checkout(self, given: Given) -> Answer:
        self._wait_at(given)
        with self._engine.connect() as connection:
            connection.execute(text(routes.SELECT_ONE))
        return routes.done("late checkout")

    def reserve(self, given: Given) -> Answer:
        with self._engine.begin() as connection:
            connection.execute(text(routes.INSERT), given.row)
            connection.execute(self._wait, {"latch": given.number})
        return routes.reserved(given)

    def fail(self, given: Given) -> Answer:
        with self._engine.connect() as connection:
            connection.execute(text(routes.SELECT_ONE))
            self._wait_at(given)
            raise routes.failure()

    def stream(self, given: Given) -> Response:
        def halves() -> Iterator[bytes]:
            with self._engine.connect() as connection:
                connection.execute(text(routes.SELECT_ONE))
                yield routes.FIRST_HALF
                connection.execute(self._wait, {"latch": given.number})
                yield routes.SECOND_HALF

        return Response(halves(), content_type=routes.STREAM_TYPE)

    def pinned(self, given: Given) -> Response:
        def halves() -> Iterator[bytes]:
            with self._engine.connect() as connection:
                connection.execute(text(routes.SELECT_ONE))
                yield routes.FIRST_HALF
                self._wait_at(given)
                yield routes.SECOND_HALF

        return Response(halves(), content_type=routes.STREAM_TYPE)

    def short(self, given: Given) -> Response:
        return self._announcing(routes.FIRST_HALF)

    def long(self, given: Given) -> Response:
        return self._announcing(routes.FIRST_HALF, b"\n", routes.SECOND_HALF)

    def _announcing(self, *chunks: bytes) -> Response:
        response = Response(iter(chunks), content_type=routes.STREAM_TYPE)
        response.content_length = routes.ANNOUNCED
        return response

    def big(self, given: Given) -> Response:
        return Response(bytes(routes.BIG), content_type=routes.STREAM_TYPE)

    def endless(self, given: Given) -> Response:
        def lines() -> Iterator[bytes]:
            with self._engine.connect() as connection:
                connection.execute(text(routes.SELECT_ONE))
                connection.commit()  # in no transaction, it is not pinned
                while True:
                    yield routes.LINE
                    time.sleep(routes.LINE_PAUSE)

        return Response(lines(), content_type=routes.STREAM_TYPE)

    def events(self, given: Given) -> Response:
        def events() -> Iterator[bytes]:
            with self._engine.connect() as connection:
                connection.execute(text(routes.SELECT_ONE))
            while True:
                yield routes.EVENT
                time.sleep(routes.LINE_PAUSE)

        return Response(events(), content_type=routes.EVENTS_TYPE)

    def stubborn(self, given: Given) -> Answer:
        with self._engine.connect():
            self._wait_at(given)  # nothing can be told to a thread that waits
        return routes.done("stubborn")

    def background(self, given: Given) -> Answer:
        def report() -> None:
            with hold_as(routes.BACKGROUND_NAME):
                self.hold(given)

        threading.Thread(target=report, daemon=True).start()
        return routes.done("background")

    def nightly(self, given: Given) -> Answer:
        def report() -> None:
            with hold_as(routes.BACKGROUND_NAME):
                self.reserve(given)

        threading.Thread(target=report, daemon=True).start()
        return routes.done("nightly")

    def outside(self, given: Given) -> Answer:
        threading.Thread(target=self.reserve, args=(given,), daemon=True).start()
        return routes.done("outside")

    def listener(self, given: Given) -> Answer:
        def listen() -> None:
            connection = self._engine.connect()
            connection.execute(text(routes.SELECT_ONE))
            connection.commit()
            self._kept.append(connection)
            self._wait_at(given)

        threading.Thread(target=listen, daemon=True).start()
        return routes.done("listener")

    def after_response(self, given: Given) -> Response:
        response = _response(routes.done("after response"))
        response.call_on_close(lambda: self.hold(given))
        return response

    def after_query(self, given: Given) -> Response:
        response = _response(routes.done("after query"))
        response.call_on_close(lambda: self.query(given))
        return response

    def keep(self, given: Given) -> Answer:
        connection = self._engine.connect()
        connection.execute(text(routes.SELECT_ONE))
        self._kept.append(connection)
        return routes.done("keep")

    def give_back(self, given: Given) -> Answer:
        self._wait_at(given)
        while self._kept:
            self._kept.pop().close()
        return routes.done("return")

    def second(self, given: Given) -> Answer:
        if self._second is None:
            return routes.missing("/second")
        with self._second.connect() as connection:
            connection.execute(self._wait, {"latch": given.number})
        return routes.done("second")

    def second_leak(self, given: Given) -> Answer:
        if self._second is None:
            return routes.missing("/second-leak")
        connection = self._second.connect()
        connection.execute(text(routes.SELECT_ONE))
        self._kept.append(connection)
        return routes.done("second leak")

    def _wait_at(self, given: Given) -> None:
        if given.latch is not None:
            wait_at(given.latch)


def create_app(runner: Runner, second: Engine | None = None) -> WSGIApplication:
    """The demo's routes and the scenarios'."""
    return _with_scenarios(create_demo(runner), runner, second)


def create_plain(runner: Runner) -> WSGIApplication:
    """The scenarios' routes in an application that handles no error: what it lets through, pooldrain explains."""
    create_demo(runner)  # which makes its table
    return _with_scenarios(Flask("plain", static_folder=None), runner)


def _with_scenarios(app: Flask, runner: Runner, second: Engine | None = None) -> WSGIApplication:
    runner.answer_always(routes.WORKER_PATH)
    scenarios = Scenarios(runner, second)
    for path, name, methods in routes.ROUTES:
        handler = _responding(getattr(scenarios, name))
        app.add_url_rule(path, name, handler, methods=methods, provide_automatic_options=False)
    return _telling_worker(app)


def create_bare(runner: Runner) -> WSGIApplication:
    """The same without the demo's table, so that the start uses no connection but the pool's own."""
    app = create_app(runner)
    runner._hooks.clear()
    return app


def create_slow_start(runner: Runner) -> WSGIApplication:
    """The same; its start waits at a latch."""
    runner.on_open(lambda: wait_at(routes.START_LATCH))
    return create_app(runner)


def create_slow_close(runner: Runner) -> WSGIApplication:
    """The same; closing a connection waits at a latch."""

    def closing(connection: Any, record: object) -> None:
        wait_at(routes.CLOSE_LATCH)

    event.listen(runner.pool.engine, "close", closing, insert=True)  # before our own counting
    return create_app(runner)


def create_slow_stop(runner: Runner) -> WSGIApplication:
    """The same; with the pool closed, and before the listener is, everything waits at a latch."""
    enter = runner.enter

    def entering(phase: Phase) -> None:
        enter(phase)
        if phase is Phase.STOPPING:
            routes.wait_at(routes.STOP_LATCH)

    vars(runner)["enter"] = entering
    return create_app(runner)


def create_with_second_engine(runner: Runner) -> WSGIApplication:
    """The same, with a second engine to the same database."""
    second = runner.add_pool(runner.pool.url, routes.SECOND_POOL, routes.SECOND_LEAKS)
    return create_app(runner, second.engine)


def create_adopted(runner: Runner) -> WSGIApplication:
    """The same, with a second engine that the application makes itself, as if it knew of no runner."""
    made = create_engine(
        runner.pool.url.sync_url, pool_size=2, max_overflow=0, pool_pre_ping=True, logging_name=routes.ADOPTED
    )
    return create_app(runner, made)


def create_quick_teardown(runner: Runner) -> WSGIApplication:
    """The same; at its end it writes a row."""

    def write() -> None:
        with runner.pool.engine.begin() as connection:
            connection.execute(text(routes.INSERT), {"id": routes.AT_SHUTDOWN})

    runner.on_shutdown(routes.told_alike(write))
    return create_app(runner)


def create_slow_teardown(runner: Runner) -> WSGIApplication:
    """The same; its end waits at a latch."""

    def end() -> None:
        wait_at(routes.TEARDOWN_LATCH)

    runner.on_shutdown(routes.told_alike(end))
    return create_app(runner)


def create_failing_teardown(runner: Runner) -> WSGIApplication:
    """The same; a function of its end raises, and another one writes."""

    def failing() -> None:
        raise routes.failure()

    app = create_quick_teardown(runner)
    runner.on_shutdown(routes.told_alike(failing))
    return app


def _responding(handler: Callable[[Given], Answer | Response]) -> Callable[[], Response]:
    def respond() -> Response:
        answer = handler(Given(request.args.get))
        return answer if isinstance(answer, Response) else _response(answer)

    return respond


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status_line, answer.headers)


def _telling_worker(app: Flask) -> WSGIApplication:
    def telling(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == routes.WORKER_PATH:
            return send(routes.worker_answer(), environ, start_response)
        return app(environ, start_response)

    return telling
