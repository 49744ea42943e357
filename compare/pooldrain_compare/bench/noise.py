"""How steady the machine is: a fixed spin loop, timed again and again all through a run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from pooldrain_compare.bench.results import Noise

SPINS = 300_000  # several milliseconds: long enough to meet whatever else wants the processor
INTERVAL = 1.0  # seconds between two samples
TOO_NOISY = 1.3


class NoiseMeter:
    """Samples the spin loop, at most once an interval; to be called when nothing is being measured."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._samples: list[float] = []
        self._next = 0.0

    def sample(self) -> None:
        """Take a sample, unless the last one is fresh."""
        started = self._clock()
        if self._samples and started < self._next:
            return
        for _ in range(SPINS):
            pass
        ended = self._clock()
        self._samples.append(round((ended - started) * 1000, 3))
        self._next = ended + INTERVAL

    def noise(self) -> Noise:
        """What was seen; takes a first sample if there is none."""
        if not self._samples:
            self.sample()
        return Noise(list(self._samples), too_noisy=is_too_noisy(self._samples))


def is_too_noisy(spin_ms: Sequence[float]) -> bool:
    """Whether one sample in ten took longer than a quiet one by so much that small differences cannot be told."""
    if len(spin_ms) < 2:
        return False
    deciles = statistics.quantiles(spin_ms, n=10)
    return deciles[-1] > TOO_NOISY * deciles[0]
