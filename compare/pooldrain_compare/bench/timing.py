"""Microseconds per call of something quick, as steadily as one process can tell them."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
Clock = Callable[[], float]  # of seconds


@contextmanager
def no_collection() -> Generator[None]:
    """Without garbage collections: they would hit one side or the other by chance."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def time_calls(work: Callable[[int], object], loops: int, clock: Clock = time.thread_time) -> float:
    """Microseconds per loop of `work`, which is told how often to loop; of processor time, unless by another clock."""
    with no_collection():
        started = clock()
        work(loops)
        return (clock() - started) / loops * 1e6


async def time_awaits(work: Callable[[int], Awaitable[object]], loops: int, clock: Clock = time.thread_time) -> float:
    """The same for a coroutine."""
    with no_collection():
        started = clock()
        await work(loops)
        return (clock() - started) / loops * 1e6


def at_depth(depth: int, call: Callable[[], T]) -> T:
    """`call` below so many frames."""
    return call() if depth <= 1 else at_depth(depth - 1, call)


async def at_await_depth(depth: int, call: Callable[[], Awaitable[T]]) -> T:
    """The same below so many coroutines that await each other."""
    return await (call() if depth <= 1 else at_await_depth(depth - 1, call))
