"""The threaded shell in a trial: its application, and a server that calls it in threads that take turns."""

# ruff: noqa: D102 - the operations are explained by `scenario.OPERATIONS`

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy.util.queue
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

import pooldrain_sync.bounded
import pooldrain_sync.runner
from pooldrain.demo import STATUS_PATH
from pooldrain.errors import describe_error
from pooldrain.gate import CLOSE_CONNECTION
from pooldrain.ledger import hold_as
from pooldrain.shutdown import ShutdownReport, Stop
from pooldrain.sqla.errors import explain_error
from pooldrain.sqla.tracked_pool import TrackedPool
from pooldrain_compare.fuzz.fuzz_scenario import FuzzScenario
from pooldrain_compare.fuzz.simulated_database import Session, lost, serve_threads
from pooldrain_compare.fuzz.turns import Modules, Thread, Turns, replaced
from pooldrain_compare.fuzz.world import (
    BACKGROUND,
    ENDING,
    FIRST_HALF,
    HOLD,
    HOLD_DEAF,
    INSERT,
    REST,
    SECOND_HALF,
    SELECT,
    SERVICE,
    URL,
    Crash,
    Received,
    World,
    done,
    path_of,
    request_id,
    told_alike,
    uncounted,
)
from pooldrain_sync.middleware import GateMiddleware, send
from pooldrain_sync.pool import Pool
from pooldrain_sync.runner import Runner

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# Where the threaded shell waits: here its modules are given other ones.
_WAITING = (
    (pooldrain_sync.bounded, "threading"),
    (pooldrain_sync.runner, "threading"),
    (pooldrain_sync.runner, "time"),
    (sqlalchemy.util.queue, "threading"),
)


class _Wait:
    """A thread that waits until the script lets it go on."""

    def __init__(self, turns: Turns, session: Session | None, *, deaf: bool) -> None:
        self.deaf = deaf
        self._session = session
        self._turns = turns
        self._seat = turns.seat
        self._ended = False
        self._error: Exception | None = None

    def wait(self) -> None:
        while not self._ended:
            self._turns.wait()
        if self._error is not None:
            raise self._error

    def end(self, error: Exception | None = None) -> None:
        if not self._ended:
            self._ended = True
            self._error = error or lost(self._session)
            self._turns.wake(self._seat)


class Program:
    """The application. Its methods are the operations of `scenario`; `loop.Program` has the same."""

    def __init__(self, world: World, runner: Runner, turns: Turns) -> None:
        self._world = world
        self._runner = runner
        self._turns = turns
        self._engine = runner.pool.engine
        self._second = runner.pools[-1].engine

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        path = environ["PATH_INFO"]
        answer = uncounted(path, self._runner, self._runner.pool)
        if answer is None:
            number = int(path[1:])
            try:
                for place, operation in enumerate(self._world.programs[number]):
                    if place:
                        self.rest(number)
                    if operation == "stream":
                        start_response("200 OK", [("content-type", "text/plain")])
                        return self.stream(number)
                    if operation == "after":
                        return After(send(done(number), environ, start_response), partial(self.hold, number))
                    getattr(self, operation)(number)
                answer = done(number)
            except Crash:
                raise
            except Exception as error:  # noqa: BLE001 - as the demo does
                answer = explain_error(error, path)
        return send(answer, environ, start_response)

    def wait_for(self, session: Session | None, key: str, deaf: bool) -> None:
        """Wait until the script lets it go on."""
        wait = _Wait(self._turns, session, deaf=deaf)
        name = self._world.waits.enter(key, wait)
        if session is not None:
            session.wait = wait
        try:
            wait.wait()
        finally:
            self._world.waits.leave(name)
            if session is not None:
                session.wait = None

    def rest(self, number: int) -> None:
        """Let all others go on as far as they can."""
        self.wait_for(None, f"{REST}{number}", True)

    def query(self, number: int) -> None:
        with self._engine.connect() as connection:
            connection.execute(SELECT)

    def hold(self, number: int) -> None:
        with self._engine.connect() as connection:
            connection.execute(HOLD, {"key": str(number)})

    def stubborn(self, number: int) -> None:
        with self._engine.connect() as connection, suppress(DBAPIError):
            connection.execute(HOLD, {"key": str(number)})

    def stuck(self, number: int) -> None:
        with self._engine.connect() as connection:
            connection.execute(HOLD_DEAF, {"key": str(number)})

    def wait(self, number: int) -> None:
        self.wait_for(None, str(number), True)

    def write(self, number: int) -> None:
        with self._engine.begin() as connection:
            connection.execute(INSERT, {"key": f"row {number}"})
            connection.execute(HOLD, {"key": str(number)})

    def second(self, number: int) -> None:
        with self._second.connect() as connection:
            connection.execute(HOLD, {"key": str(number)})

    def keep(self, number: int) -> None:
        connection = self._engine.connect()
        connection.execute(SELECT)
        self._world.kept.append(connection)

    def collect(self, number: int) -> None:
        connection = self._engine.connect()
        connection.execute(SELECT)
        del connection
        gc.collect()

    def background(self, number: int) -> None:
        def report() -> None:
            with hold_as(BACKGROUND), self._engine.connect() as connection:
                connection.execute(HOLD, {"key": f"background {number}"})

        def run() -> None:
            try:
                report()
            except Exception as error:  # noqa: BLE001 - a background task fails without anybody to tell
                self._world.errors.append(describe_error(error))

        Thread(self._turns, run).start()
        self.rest(number)

    def end(self) -> None:
        for operation in self._world.scenario.ending:
            try:
                getattr(self, operation)(ENDING)
            except Exception as error:  # noqa: BLE001 - its text may name lines of this file
                raise RuntimeError(type(error).__name__) from None

    def fail(self, number: int) -> None:
        with self._engine.connect() as connection:
            connection.execute(SELECT)
            raise RuntimeError("the handler fails")

    def crash(self, number: int) -> None:
        raise Crash("the handler crashes")

    def invalidate(self, number: int) -> None:
        with self._engine.connect() as connection:
            connection.execute(SELECT)
            connection.invalidate()

    def stream(self, number: int) -> Iterator[bytes]:
        with self._engine.connect() as connection:
            connection.execute(SELECT)
            yield FIRST_HALF
            connection.execute(HOLD, {"key": str(number)})
            yield SECOND_HALF


class After(list[bytes]):
    """An answer with work that follows it, as Flask's `call_on_close` makes one."""

    def __init__(self, body: Iterable[bytes], work: Callable[[], None]) -> None:
        super().__init__(body)
        self.close = work


class _Server:
    """Stands for a server, as far as a runner can see; there is no socket to refuse on or to close."""

    def __init__(self, world: World) -> None:
        self._world = world

    def drain(self) -> None:
        self._world.server_step("drain")

    def cancel(self) -> None:
        self._world.server_step("cancel")

    def stop(self, step: Stop) -> None:
        self._world.server_step("stop")


class ThreadStage:
    """Plays a scenario on the threaded shell."""

    name = "threads"

    def __init__(self, scenario: FuzzScenario) -> None:
        self._turns = turns = Turns()
        self.world = World(scenario, turns.clock)
        self.report: ShutdownReport | None = None
        self._stack = ExitStack()
        self._stack.enter_context(replaced(_WAITING, Modules(turns)))
        lock = threading.RLock()
        pool = Pool(
            URL, scenario.pool, scenario.leaks, self.world.transcript, service=SERVICE, lock=lock, clock=turns.clock
        )
        self.runner = Runner(pool, scenario.shutdown, lock=lock, clock=turns.clock)
        for _ in range(1, scenario.engines):
            self.runner.add_pool(URL, scenario.pool, scenario.leaks)
        self._program = Program(self.world, self.runner, turns)
        for pool in self.runner.pools:
            serve_threads(self.world.database, pool.engine, self._program.wait_for)
        self._app = GateMiddleware(self._program, self.runner)
        self.runner.answer_always(STATUS_PATH)
        if scenario.ending:
            self.runner.on_shutdown(told_alike(self._program.end))
        self.pools: Sequence[TrackedPool] = self.runner.pools

    def open(self) -> None:
        """Open the pools."""
        self._start(self.runner.open)

    def request(self, number: int) -> None:
        """A request comes."""

        def serve() -> None:
            self._serve(path_of(number), request_id(number), self.world.received[number], number)
            self.world.ended(number)

        self._start(serve)

    def probe(self, path: str) -> Received:
        """Ask for a page that is never counted."""
        received = Received()
        self._start(lambda: self._serve(path, "probe", received, None))
        self.settle()
        return received

    def signal(self, name: str) -> None:
        """A signal comes."""
        if self.runner.signalled(name):
            self._start(self._shut_down)

    def give_back(self, connection: Connection) -> None:
        """A leaked connection is returned."""
        self._start(connection.close)

    def settle(self) -> None:
        """Let everything happen that can."""
        self._turns.run()
        self.world.errors += [describe_error(error) for error in self._turns.errors]
        self._turns.errors.clear()

    def next_timer(self) -> float | None:
        """When something happens that only time brings."""
        return self._turns.next_timer()

    def move_to(self, now: float) -> None:
        """Let time pass."""
        self._turns.move_to(now)

    def end(self) -> None:
        """End what still runs."""
        self.world.over = True
        self.world.database.closing = "well"
        try:
            self._turns.end()
            self.world.kept.clear()
        finally:
            self._stack.close()

    def _start(self, target: Callable[[], Any]) -> None:
        Thread(self._turns, target).start()

    def _shut_down(self) -> None:
        self.report = self.runner.shut_down(_Server(self.world))

    def _serve(self, path: str, given_id: str, received: Received, number: int | None) -> None:
        """One request, as a server treats it (PEP 3333)."""

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
            received.status, received.headers = int(status[:3]), headers

        def close_connection() -> None:
            received.closes = True

        environ: WSGIEnvironment = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "HTTP_X_REQUEST_ID": given_id,
            CLOSE_CONNECTION: close_connection,
        }
        body: Iterable[bytes] = ()
        try:
            try:
                body = self._app(environ, start_response)
                for chunk in body:
                    if number in self.world.gone:
                        break
                    received.body += chunk
            finally:
                close = getattr(body, "close", None)
                if close is not None:
                    close()
        except Exception as error:  # noqa: BLE001 - a server survives it
            received.error = type(error).__name__
