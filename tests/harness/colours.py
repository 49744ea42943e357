"""One test, two colours: the same lines on real threads, and on an event loop inside SQLAlchemy's greenlet.

A test marked `both_colours` takes a `colour`, which stands for what the two do differently.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import pytest
from sqlalchemy.util import await_only, greenlet_spawn

from pooldrain.sqla.async_pool import ClosableAsyncQueuePool
from pooldrain.sqla.pool import ClosablePool, ClosableQueuePool
from pooldrain.sqla.queues import ClosableAsyncQueue

T = TypeVar("T")
PATIENCE = 10.0  # seconds after which a test gives up; one that passes comes nowhere near it


class Colour:
    """What a test needs in order not to know which of the two it runs on."""

    pool_class: type[ClosablePool]

    def run(self, test: Callable[[], None]) -> None:
        """Run a test."""
        raise NotImplementedError

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """Run `work` beside the test; what is returned waits for its result, and raises what it raised."""
        raise NotImplementedError

    def event(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """An event: what sets it, and what waits for it."""
        raise NotImplementedError

    def watch(self, pool: ClosablePool) -> None:
        """Look at who begins to wait in this pool."""

    def until_waiting(self, pool: ClosablePool, count: int) -> None:
        """Return when `count` checkouts wait in this pool. Once a pool."""
        raise NotImplementedError

    def breathe(self) -> None:
        """Let others run."""


class Threads(Colour):
    """Threads."""

    pool_class = ClosableQueuePool

    def run(self, test: Callable[[], None]) -> None:
        """Run a test, with threads that change often: races show themselves sooner."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            test()
        finally:
            sys.setswitchinterval(interval)

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """In a thread."""
        task = concurrent.futures.Future[T]()

        def body() -> None:
            try:
                task.set_result(work())
            except BaseException as error:
                task.set_exception(error)
                if not isinstance(error, Exception):
                    raise

        threading.Thread(target=body, daemon=True).start()
        return lambda: task.result(PATIENCE)

    def event(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """One of threading's."""
        happened = threading.Event()

        def wait() -> None:
            assert happened.wait(PATIENCE)

        return happened.set, wait

    def watch(self, pool: ClosablePool) -> None:
        """Put a condition in its queue that tells who waits."""
        queue: Any = pool._pool
        queue.not_empty = WatchedCondition(queue.mutex)

    def until_waiting(self, pool: ClosablePool, count: int) -> None:
        """Return when `count` threads wait in this pool."""
        queue: Any = pool._pool
        for _ in range(count):
            assert queue.not_empty.waits.acquire(timeout=PATIENCE)
        with queue.mutex:
            pass  # the last of them holds it until it really waits


class WatchedCondition(threading.Condition):
    """A condition that says when a thread is about to wait on it."""

    def __init__(self, mutex: Any) -> None:
        super().__init__(mutex)
        self.waits = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        """Say so, and wait."""
        self.waits.release()
        return super().wait(timeout)


class Loop(Colour):
    """An event loop."""

    pool_class = ClosableAsyncQueuePool

    def run(self, test: Callable[[], None]) -> None:
        """Run a test in SQLAlchemy's greenlet, in a loop of its own."""
        run(greenlet_spawn(test))

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """In a task."""
        task = asyncio.ensure_future(greenlet_spawn(work))
        return lambda: await_only(asyncio.wait_for(task, PATIENCE))

    def event(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """One of asyncio's."""
        happened = asyncio.Event()
        return happened.set, lambda: cast(None, await_only(asyncio.wait_for(happened.wait(), PATIENCE)))

    def until_waiting(self, pool: ClosablePool, count: int) -> None:
        """Return when `count` tasks wait in this pool."""
        await_only(until_waiting(pool, count))

    def breathe(self) -> None:
        """Let other tasks run."""
        await_only(asyncio.sleep(0))


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run an asyncio test."""
    try:
        asyncio.run(asyncio.wait_for(test, 2 * PATIENCE))
    except BaseException:
        gc.collect()  # CPython 3.11 minds if a greenlet left behind ends while pytest parses the test that failed
        raise


async def until_waiting(pool: ClosablePool, count: int) -> None:
    """Return when `count` tasks wait in this pool."""
    queue = pool._pool
    assert isinstance(queue, ClosableAsyncQueue)
    for _ in range(1000):
        if queue.waiting == count:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{queue.waiting} wait, not {count}")


def both_colours(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in each colour."""

    @functools.wraps(test)
    def in_colour(colour: Colour, **fixtures: Any) -> None:
        colour.run(lambda: test(colour, **fixtures))

    mark = pytest.mark.parametrize("colour", [Threads(), Loop()], ids=["threads", "loop"])
    marked: Callable[..., None] = mark(in_colour)
    return marked
