"""Waiting for what offers no event to wait on: a file, a page, a view of the database server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

# Seconds after which something that should have happened long ago is a failure, not a slow machine.
BOUND = 15.0
_PAUSE = 0.004  # between two looks

Seen = TypeVar("Seen")


def eventually(look: Callable[[], Seen], what: str, within: float = BOUND) -> Seen:
    """Look until what is seen is true, and return it; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(_PAUSE)
    return seen
