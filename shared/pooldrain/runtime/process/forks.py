"""Forks: a child starts with empty pools and books, and leaves its parent's connections alone.

Two processes that use one connection spoil it for both. So before the child's first line runs (`os.fork`,
`multiprocessing`, a master that made the engine before its workers):
1. each engine gets a fresh pool, as by `Engine.dispose(close=False)`, with fresh locks, and the ledger is emptied;
2. what was checked out, in whichever thread, counts as invalidated: SQLAlchemy opens another connection in its place;
3. nothing of the parent's is closed, and nothing is ever collected: both would say goodbye to the server in its name.

And the child does not listen: one that outlives its service would keep the address, and clients would wait in vain.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from typing import Any

from pooldrain.sqla.tracker import TrackedPool

_pools: weakref.WeakSet[TrackedPool] = weakref.WeakSet()
_listeners: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_inherited: list[Any] = []  # what is never to be collected
_held = contextlib.ExitStack()  # the pools' locks, during a fork: what the child gets is no half-done book


def protect(pool: TrackedPool) -> None:
    """Let children of this process start with `pool` as if nothing had ever been asked of it."""
    _pools.add(pool)


def keep_from_children(listener: socket.socket) -> None:
    """Close a listener of this process in its children."""
    _listeners.add(listener)


def _before() -> None:
    for pool in sorted(_pools, key=id):
        _held.enter_context(pool.lock)


def _after_in_parent() -> None:
    _held.close()


def _after_in_child() -> None:
    for pool in _pools:
        _inherited.extend(pool.forget())
    for listener in _listeners:
        listener.close()
    _held.close()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
