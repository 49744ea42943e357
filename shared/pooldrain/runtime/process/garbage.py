"""The garbage collector, once a process is about to serve."""

from __future__ import annotations

import gc


def freeze_startup() -> None:
    """Leave what was made until now out of every later collection; what of it is garbage already is collected first.

    An application's modules, routes and models are some 100,000 objects that stay for ever. As soon as a few dozen
    requests are in flight at a time, the collector looks at all of them several times a second, for tens of
    milliseconds each (https://docs.python.org/3/library/gc.html#gc.freeze).
    """
    if gc.isenabled():
        gc.collect()
    gc.freeze()
