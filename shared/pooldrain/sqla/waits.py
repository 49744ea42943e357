"""Tells when a thread waits for its database, or for a connection of a pool: a server may have others run meanwhile.

Others who know that a thread waits may say so in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from sqlalchemy import Engine

P = ParamSpec("P")
T = TypeVar("T")


class Waits(Protocol):
    """Who is told."""

    def begin_wait(self) -> bool:
        """This thread is about to wait; whether `end_wait` is to be called when it does not any more."""
        ...

    def end_wait(self) -> None:
        """It has what it waited for; may wait until it may go on."""


class _Nobody:
    def begin_wait(self) -> bool:
        return False

    def end_wait(self) -> None:
        pass


class _Told:
    """Who is told, in this process."""

    waits: Waits = _Nobody()


def tell(waits: Waits) -> None:
    """Tell `waits` from now on, and nobody else."""
    _Told.waits = waits


def telling(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, during which its thread waits."""

    @wraps(function)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> T:
        waits = _Told.waits
        if not waits.begin_wait():
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        finally:
            waits.end_wait()

    return waiting


def _forget_in_child() -> None:
    _Told.waits = _Nobody()  # whose threads are not there, and whose locks they may have held


os.register_at_fork(after_in_child=_forget_in_child)

# What a dialect does over the network (`sqlalchemy.engine.interfaces.Dialect`).
_OVER_THE_NETWORK = ("connect", "do_execute", "do_executemany", "do_execute_no_params", "do_commit", "do_rollback")


def tell_of_database(engine: Engine) -> None:
    """Tell when a thread waits for the database of `engine`; one that is a file works in the thread itself."""
    dialect: Any = engine.dialect
    if dialect.is_async or dialect.name == "sqlite":
        return
    for name in _OVER_THE_NETWORK:
        setattr(dialect, name, telling(getattr(dialect, name)))
