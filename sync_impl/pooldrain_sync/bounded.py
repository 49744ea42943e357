"""Waiting for what may hang, until a deadline and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

Work = Callable[[], None]


def run_all(works: Iterable[Work], deadline: float, clock: Callable[[], float], *, name: str) -> bool:
    """Run every work, each in a thread of its own; False if one is not done at the deadline (seconds of `clock`).

    One that hangs costs the others nothing; it is left to itself. Raises what the first that raised did, once
    all have been waited for. What cannot be waited for is not begun.
    """
    if deadline <= clock():
        return False
    errors: list[Exception] = []
    threads = [threading.Thread(target=_guarded, args=(work, errors), name=name, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - clock()))
    if errors:
        raise errors[0]
    return not any(thread.is_alive() for thread in threads)


def _guarded(work: Work, errors: list[Exception]) -> None:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - raised again where it is waited for
        errors.append(error)
