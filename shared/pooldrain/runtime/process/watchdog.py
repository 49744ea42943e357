"""The last resort: ends a process that has outlived its grace period, whatever it hangs in.

A handler that blocks the event loop keeps it from ever hearing of the shutdown, a database may hang while the service
starts, and a callback at the exit may wait for ever. A thread of its own sees to it that the process ends all the same.
(Workers that have started have their master for that, and the master has a watchdog once it ends.)

Whatever hangs, nothing is left END_MARGIN seconds after the grace period. What happens until then, in this order:
a worker whose start hangs ends itself (WORKER), the master kills the workers that are left (`policy.MASTER_MARGIN`) and
refuses those who came too late, a process without a master ends itself (ALONE), and so does a master (MASTER).
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from types import FrameType

from pooldrain.exit_codes import ExitCode

logger = logging.getLogger("pooldrain")

# Seconds beyond the grace period after which no process is left.
END_MARGIN = 0.5


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: beyond the grace period, in which the process may still end by itself; then, to say where it hangs.

    What it hangs in may be the log itself.
    """

    margin: float
    last_words: float


ALONE = Patience(0.3, 0.2)
WORKER = Patience(0.1, 0.15)
MASTER = Patience(0.45, 0.05)

# Frames of a stack that are told, from the innermost.
_FRAMES = 4


class Watchdog:
    """Watches the thread that makes it. `grace_period` in seconds, from the call of `arm`."""

    def __init__(self, grace_period: float, patience: Patience = ALONE) -> None:
        self.exit_code: int = ExitCode.NOT_STARTED  # with which it ends the process
        self._grace_period = grace_period
        self._patience = patience
        self._watched = threading.get_ident()
        self._armed: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._disarmed = threading.Event()
        threading.Thread(target=self._watch, name="pooldrain-watchdog", daemon=True).start()

    def arm(self) -> None:
        """The shutdown begins. May be called in a signal handler, and again: the first call counts."""
        self._armed.put(time.monotonic())

    def disarm(self) -> None:
        """There is nothing to watch any more."""
        self._disarmed.set()
        self.arm()  # whoever waits for that may end

    def _watch(self) -> None:
        deadline = self._armed.get() + self._grace_period + self._patience.margin
        if self._disarmed.wait(max(0.0, deadline - time.monotonic())):
            return
        telling = threading.Thread(target=self._tell, daemon=True)
        telling.start()
        telling.join(self._patience.last_words)
        os._exit(self.exit_code)

    def _tell(self) -> None:
        where = _where(sys._current_frames().get(self._watched))
        logger.error("not ended within the grace period of %g s: leaving at once, from %s", self._grace_period, where)


def _where(frame: FrameType | None) -> str:
    """Where a thread is, in one line, the innermost call first."""
    if frame is None:
        return "nowhere"
    stack = traceback.extract_stack(frame, limit=_FRAMES)
    return " < ".join(f"{place.filename}:{place.lineno} in {place.name}" for place in reversed(stack))
