"""The service of this process, for code that was not handed its runner: who it is, and what to run at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[[], object])

_runner: Any = None
_at_shutdown: list[Callable[[], object]] = []


def current_runner() -> Any:
    """The runner of this process (`pooldrain_sync.runner.Runner` or the one of asyncio); None where none serves."""
    return _runner


def set_current_runner(runner: object) -> None:
    """Have `current_runner` return `runner`, whose shutdown runs what `on_shutdown` was given."""
    global _runner  # noqa: PLW0603 - a process has one service
    _runner = runner


def on_shutdown(function: Function) -> Function:
    """Have `function` called when the last request has ended, with the connection pools still open. A decorator, too.

    The last one registered is the first one called, as with `atexit`; a coroutine function is awaited (on asyncio on
    the loop, where plain functions run in a thread). All of them have `--teardown-timeout` seconds; what one raises is
    told, and the others run. Without a pooldrain command around it nothing is ever called.
    """
    _at_shutdown.append(function)
    return function


def functions_at_shutdown() -> list[Callable[[], object]]:
    """What `on_shutdown` was given, in the order of the calls to come."""
    return _at_shutdown[::-1]
