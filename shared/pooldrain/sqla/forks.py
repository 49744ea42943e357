"""Forks: a child starts with empty pools and books, and leaves its parent's connections alone.

Two processes that use one connection spoil it for both. So before the child's first line runs (`os.fork`,
`multiprocessing`, a master that made the engine before its workers):
1. each engine gets a fresh pool, as by `Engine.dispose(close=False)`, with fresh locks, and the ledger is emptied;
2. what was checked out, in whichever thread, counts as invalidated: SQLAlchemy opens another connection in its place;
3. nothing of the parent's is closed, and nothing is ever collected: both would say goodbye to the server in its name.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Forgetful(Protocol):
    """What starts anew in a child."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """What guards it."""
        ...

    def forget(self) -> list[Any]:
        """Start anew; returns what must never be collected."""
        ...


_pools: weakref.WeakSet[Forgetful] = weakref.WeakSet()
_inherited: list[Any] = []  # what is never to be collected
_held = contextlib.ExitStack()  # the pools' locks, during a fork: what the child gets is no half-done book


def protect(pool: Forgetful) -> None:
    """Let children of this process start with `pool` as if nothing had ever been asked of it."""
    _pools.add(pool)


def _before() -> None:
    for pool in sorted(_pools, key=id):
        _held.enter_context(pool.lock)


def _after_in_parent() -> None:
    _held.close()


def _after_in_child() -> None:
    for pool in _pools:
        _inherited.extend(pool.forget())
    _held.close()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
