"""What a process sees to about its memory before it serves."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Generator
from contextlib import contextmanager

# glibc's number for the most arenas that its allocator makes (mallopt(3)), and how many we let it have: by default it
# makes eight for each core, one thread's memory is freed by another, and a process of many threads grows by a third.
_M_ARENA_MAX = -8
ARENAS = 2


def limit_arenas() -> None:
    """Have the allocator make few arenas, for which it has to be told before there are threads.

    What the user has set (MALLOC_ARENA_MAX, GLIBC_TUNABLES) stays.
    """
    if "MALLOC_ARENA_MAX" not in os.environ and "arena_max" not in os.environ.get("GLIBC_TUNABLES", ""):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # another C library's allocator has no such number
            mallopt(_M_ARENA_MAX, ARENAS)


@contextmanager
def loading() -> Generator[None]:
    """Within it, modules of ours and of libraries are loaded: no collection looks at them, neither now nor later.

    They stay, and next to nothing of them is garbage; to look at them again and again while more are loaded is a tenth
    of what a start costs.
    """
    usual = gc.get_threshold()
    gc.set_threshold(0)
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*usual)


def freeze_startup() -> None:
    """Leave what was made until now out of every later collection; what of it is garbage already is collected first.

    An application's modules, routes and models are some 100,000 objects that stay for ever. As soon as a few dozen
    requests are in flight at a time, the collector looks at all of them several times a second, for tens of
    milliseconds each (https://docs.python.org/3/library/gc.html#gc.freeze).
    """
    if gc.isenabled():
        gc.collect()
    gc.freeze()
