"""When the main thread of a threaded server looks after what its threads do not come to: woken, or by the clock."""

from __future__ import annotations

import contextlib
import os
import time

from pooldrain_sync.engine.slots import Governor, RunSlots

# Seconds between two looks of the main thread while everybody is busy, and how many looks it goes on for afterwards.
LOOK = 0.005
LOOKS = 20

# Requests begun between two looks, from which on the busy threads come by everything quickly enough themselves.
BRISK = 4

# Threads that run Python at the same time: more of them take the interpreter from each other at every system call.
RUN_SLOTS = 1
SLOTS = "POOLDRAIN_RUN_SLOTS"  # a variable: another number of them, to measure what they bring


def run_slots() -> int:
    """How many slots there are to be."""
    return int(os.environ.get(SLOTS, RUN_SLOTS))


class Lookout:
    """The run slots of a server's threads, and when its main thread has to look."""

    def __init__(self, threads: int, slots: int) -> None:
        self.slots = RunSlots(min(slots, threads), self._all_are_busy)
        self._governor = Governor(self.slots, threads, time.monotonic(), time.process_time())
        self.woken, self._wake = os.pipe()  # readable once somebody wakes the main thread
        for end in (self.woken, self._wake):
            os.set_blocking(end, False)
        self._asleep = False  # whether it sleeps until it is woken
        self._looks = 0  # how many more looks it takes

    def wake(self) -> None:
        """Wake the main thread."""
        self._asleep = False
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"x")

    def _all_are_busy(self) -> None:
        if self._asleep:
            self.wake()

    def patience(self) -> float:
        """Seconds until the main thread has to look again, if nothing wakes it before. It is about to wait."""
        self._asleep = True
        if not self.slots.polling or self.slots.waiting:  # what runs may wait for somebody who waits for a slot
            self._looks = LOOKS
        if self._looks:
            self._asleep = False
            self._looks -= 1
            return LOOK
        return 1.0

    def look(self) -> bool:
        """The main thread is awake; whether it has to do what the threads do not come to."""
        self._asleep = False
        with contextlib.suppress(BlockingIOError):
            os.read(self.woken, 4096)
        begun = self._governor.look(time.monotonic(), time.process_time())
        return not self.slots.polling and begun < BRISK
