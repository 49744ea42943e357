"""The instants of a shutdown, as its events tell them."""

from __future__ import annotations

import threading
import time

from pooldrain.phases import Phase
from pooldrain.transcript import DrainEnded, DrainStarted, Event, PhaseEntered


class Watch:
    """Hears a runner's events and takes the time of those that matter. Seconds on the monotonic clock."""

    def __init__(self) -> None:
        self.draining = threading.Event()
        self.drained = 0.0
        self._entered: dict[str, float] = {}

    def hear(self, event: Event) -> None:
        """Take one event."""
        now = time.monotonic()
        match event:
            case DrainStarted():
                self.draining.set()
            case DrainEnded():
                self.drained = now
            case PhaseEntered(phase):
                self._entered[phase] = now
            case _:
                pass

    def between(self, first: Phase, second: Phase) -> float:
        """Seconds from the entry into one phase to that into another."""
        return self._entered[second.value] - self._entered[first.value]
