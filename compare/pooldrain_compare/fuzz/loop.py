"""The asyncio shell in a trial: its application, and a server that calls it in tasks, on a clock of the trial's own."""

# ruff: noqa: D102 - the operations are explained by `scenario.OPERATIONS`

from __future__ import annotations

import asyncio
import gc
import selectors
import threading
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.types import Message, Receive, Scope, Send

from pooldrain.demo import STATUS_PATH
from pooldrain.errors import describe_error
from pooldrain.ledger import hold_as
from pooldrain.shutdown import ShutdownReport, Stop
from pooldrain.sqla.errors import explain_error
from pooldrain.sqla.tracked_pool import TrackedPool
from pooldrain_async.middleware import GateMiddleware, send_answer
from pooldrain_async.pool import Pool
from pooldrain_async.runner import Runner
from pooldrain_compare.fuzz.fuzz_scenario import FuzzScenario
from pooldrain_compare.fuzz.simulated_database import Session, lost, serve_tasks
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
    ClientGoneError,
    Crash,
    Received,
    World,
    done,
    path_of,
    request_id,
    told_alike,
    uncounted,
)


class _NothingToSelect(selectors.SelectSelector):
    """Nothing comes from outside: where a loop would wait, it returns to the director."""

    def __init__(self, loop: _Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        """Nothing."""
        if timeout is None or timeout > 0:
            self._loop.stop()
        return []


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose time moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_NothingToSelect(self))

    def time(self) -> float:
        """Monotonic seconds."""
        return self.now

    def next_timer(self) -> float | None:
        """When the next timer is due."""
        timers: list[asyncio.TimerHandle] = getattr(self, "_scheduled")  # noqa: B009 - asyncio's own
        return min((timer.when() for timer in timers if not timer.cancelled()), default=None)


class _Wait:
    """A task that waits until the script lets it go on."""

    def __init__(self, loop: _Loop, session: Session | None, *, deaf: bool) -> None:
        self.deaf = deaf
        self._session = session
        self._future: asyncio.Future[None] = loop.create_future()

    async def wait(self, world: World) -> None:
        while True:
            try:
                return await asyncio.shield(self._future)
            except asyncio.CancelledError:
                if world.over or not self.deaf:
                    raise

    def end(self, error: Exception | None = None) -> None:
        if self._future.done():
            return
        error = error or lost(self._session)
        if error is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(error)


class Program:
    """The application. Its methods are the operations of `scenario`; `threads.Program` has the same."""

    def __init__(self, world: World, runner: Runner, loop: _Loop) -> None:
        self._world = world
        self._runner = runner
        self._loop = loop
        self._engine = runner.pool.engine
        self._second = runner.pools[-1].engine
        self._reports: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope["path"]
        answer = uncounted(path, self._runner, self._runner.pool)
        if answer is None:
            number = int(path[1:])
            try:
                for place, operation in enumerate(self._world.programs[number]):
                    if place:
                        await self.rest(number)
                    if operation in ("stream", "after"):
                        break
                    await getattr(self, operation)(number)
                answer = done(number)
            except Crash:
                raise
            except Exception as error:  # noqa: BLE001 - as the demo does
                answer = explain_error(error, path)
            else:
                if "stream" in self._world.programs[number]:
                    headers = [(b"content-type", b"text/plain")]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    await self.stream(number, send)
                    return
                if "after" in self._world.programs[number]:
                    with suppress(ClientGoneError):  # what follows is done all the same
                        await send_answer(answer, send)
                    await self.hold(number)
                    return
        await send_answer(answer, send)

    async def wait_for(self, session: Session | None, key: str, deaf: bool) -> None:
        """Wait until the script lets it go on."""
        wait = _Wait(self._loop, session, deaf=deaf)
        name = self._world.waits.enter(key, wait)
        if session is not None:
            session.wait = wait
        try:
            await wait.wait(self._world)
        finally:
            self._world.waits.leave(name)
            if session is not None:
                session.wait = None

    async def rest(self, number: int) -> None:
        """Let all others go on as far as they can."""
        await self.wait_for(None, f"{REST}{number}", True)

    async def query(self, number: int) -> None:
        async with self._engine.connect() as connection:
            await connection.execute(SELECT)

    async def hold(self, number: int) -> None:
        async with self._engine.connect() as connection:
            await connection.execute(HOLD, {"key": str(number)})

    async def stubborn(self, number: int) -> None:
        async with self._engine.connect() as connection:
            with suppress(DBAPIError):
                await connection.execute(HOLD, {"key": str(number)})

    async def stuck(self, number: int) -> None:
        async with self._engine.connect() as connection:
            await connection.execute(HOLD_DEAF, {"key": str(number)})

    async def wait(self, number: int) -> None:
        await self.wait_for(None, str(number), True)

    async def write(self, number: int) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(INSERT, {"key": f"row {number}"})
            await connection.execute(HOLD, {"key": str(number)})

    async def second(self, number: int) -> None:
        async with self._second.connect() as connection:
            await connection.execute(HOLD, {"key": str(number)})

    async def keep(self, number: int) -> None:
        connection = await self._engine.connect()
        await connection.execute(SELECT)
        self._world.kept.append(connection)

    async def collect(self, number: int) -> None:
        connection = await self._engine.connect()
        await connection.execute(SELECT)
        del connection
        gc.collect()

    async def background(self, number: int) -> None:
        async def report() -> None:
            with hold_as(BACKGROUND):
                async with self._engine.connect() as connection:
                    await connection.execute(HOLD, {"key": f"background {number}"})

        async def run() -> None:
            try:
                await report()
            except Exception as error:  # noqa: BLE001 - a background task fails without anybody to tell
                self._world.errors.append(describe_error(error))

        task = asyncio.create_task(run())
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)
        await self.rest(number)

    async def end(self) -> None:
        for operation in self._world.scenario.ending:
            try:
                await getattr(self, operation)(ENDING)
            except Exception as error:  # noqa: BLE001 - its text may name lines of this file
                raise RuntimeError(type(error).__name__) from None

    async def fail(self, number: int) -> None:
        async with self._engine.connect() as connection:
            await connection.execute(SELECT)
            raise RuntimeError("the handler fails")

    async def crash(self, number: int) -> None:
        raise Crash("the handler crashes")

    async def invalidate(self, number: int) -> None:
        async with self._engine.connect() as connection:
            await connection.execute(SELECT)
            await connection.invalidate()

    async def stream(self, number: int, send: Send) -> None:
        async with self._engine.connect() as connection:
            await connection.execute(SELECT)
            await send({"type": "http.response.body", "body": FIRST_HALF, "more_body": True})
            await connection.execute(HOLD, {"key": str(number)})
            await send({"type": "http.response.body", "body": SECOND_HALF, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class _Server:
    """Stands for a server, as far as a runner can see; there is no socket to refuse on or to close."""

    def __init__(self, world: World) -> None:
        self._world = world

    def drain(self) -> None:
        self._world.server_step("drain")

    def cancel(self) -> None:
        self._world.server_step("cancel")

    async def stop(self, step: Stop) -> None:
        self._world.server_step("stop")


class LoopStage:
    """Plays a scenario on the asyncio shell."""

    name = "asyncio"

    def __init__(self, scenario: FuzzScenario) -> None:
        self._loop = _Loop()
        self._loop.set_exception_handler(self._unhandled)
        self.world = World(scenario, self._loop.time)
        self.report: ShutdownReport | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        lock = threading.RLock()
        pool = Pool(
            URL, scenario.pool, scenario.leaks, self.world.transcript, service=SERVICE, lock=lock, clock=self._loop.time
        )
        self.runner = Runner(pool, scenario.shutdown, lock=lock, clock=self._loop.time)
        for _ in range(1, scenario.engines):
            self.runner.add_pool(URL, scenario.pool, scenario.leaks)
        self._program = Program(self.world, self.runner, self._loop)
        for pool in self.runner.pools:
            serve_tasks(self.world.database, pool.engine.sync_engine, self._program.wait_for)
        self._app = GateMiddleware(self._program, self.runner)
        self.runner.answer_always(STATUS_PATH)
        if scenario.ending:
            self.runner.on_shutdown(told_alike(self._program.end))
        self.pools: Sequence[TrackedPool] = self.runner.pools

    def open(self) -> None:
        """Open the pools."""
        self._start(self.runner.open())

    def request(self, number: int) -> None:
        """A request comes."""

        async def serve() -> None:
            await self._serve(path_of(number), request_id(number), self.world.received[number], number)
            self.world.ended(number)

        self._start(serve())

    def probe(self, path: str) -> Received:
        """Ask for a page that is never counted."""
        received = Received()
        self._start(self._serve(path, "probe", received, None))
        self.settle()
        return received

    def signal(self, name: str) -> None:
        """A signal comes."""
        if self.runner.signalled(name):
            self._start(self._shut_down())

    def give_back(self, connection: AsyncConnection) -> None:
        """A leaked connection is returned."""
        self._start(connection.close())

    def settle(self) -> None:
        """Let everything happen that can."""
        self._loop.run_forever()

    def next_timer(self) -> float | None:
        """When something happens that only time brings."""
        return self._loop.next_timer()

    def move_to(self, now: float) -> None:
        """Let time pass."""
        while (due := self._loop.next_timer()) is not None and due <= now:
            self._loop.now = max(self._loop.now, due)
            self._loop.run_forever()
        self._loop.now = max(self._loop.now, now)

    def end(self) -> None:
        """End what still runs."""
        self.world.over = True
        self.world.database.closing = "well"
        try:
            while tasks := asyncio.all_tasks(self._loop):
                for task in tasks:
                    task.cancel()
                self._loop.run_forever()
            self.world.kept.clear()
        finally:
            self._loop.close()

    def _start(self, work: Coroutine[Any, Any, Any] | Awaitable[Any]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - the director shall know
                self.world.errors.append(describe_error(error))

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shut_down(self) -> None:
        self.report = await self.runner.shut_down(_Server(self.world))

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        self.world.errors.append(str(context.get("exception") or context["message"]))

    async def _serve(self, path: str, given_id: str, received: Received, number: int | None) -> None:
        """One request, as a server treats it (ASGI 3)."""

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            if number in self.world.gone and message.get(
                "body"
            ):  # as in WSGI: noticed when there is something to write
                raise ClientGoneError
            if message["type"] == "http.response.start":
                headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
                received.status = message["status"]
                received.headers = [header for header in headers if header[0] != "connection"]
                received.closes = ("connection", "close") in headers
            else:
                received.body += message.get("body", b"")

        scope: Scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "headers": [(b"x-request-id", given_id.encode())],
        }
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - a server survives it
            received.error = type(error).__name__
