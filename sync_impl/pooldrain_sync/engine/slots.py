"""Run slots: how many threads run Python at the same time, and who waits for clients meanwhile.

More threads that want the interpreter than can have it cost more than they bring: each switch costs, and they switch
at every system call. So a thread holds one of a few slots while it runs, and gives it back while it waits for the
database. The rules:
1. *Polling* threads wait for clients, without a slot; there are as many as there are slots at most. The others are
   *spare* and sleep.
2. Who has got something to do takes a slot, or waits for one: first come, first served.
3. When nobody polls, a slot is free and somebody spare, one of these is woken to poll.
4. What waits for something that nobody here sees keeps its slot: a `Governor` lends more of them, and takes them back.

Thread-safe; what has to be decided is decided under one lock, and who has to wait does so without it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class RunSlots:
    """The slots of one engine."""

    def __init__(self, slots: int, when_short: Callable[[], None] = lambda: None) -> None:
        """`when_short` is called, by whoever finds out, when nobody polls any more."""
        self._when_short = when_short
        self.base = slots
        self.limit = slots  # of this moment
        self.running = 0
        self.polling = 0
        self.begun = 0  # how often somebody has begun to run: progress
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()  # for a slot: a lock each that they sleep on
        self._spare: deque[threading.Lock] = deque()
        self._mine = threading.local()

    @property
    def waiting(self) -> int:
        """How many threads wait for a slot."""
        return len(self._waiting)

    @property
    def spare(self) -> int:
        """How many threads sleep."""
        return len(self._spare)

    def _bed(self) -> threading.Lock:
        """The lock on which this thread sleeps."""
        try:
            bed: threading.Lock = self._mine.bed
        except AttributeError:
            bed = self._mine.bed = threading.Lock()
            bed.acquire()
        return bed

    def poll(self, *, from_run: bool = False) -> None:
        """Begin to poll, as soon as somebody is needed for it. `from_run`: this thread gives its slot back first."""
        with self._lock:
            if from_run:
                self.running -= 1
                if self._waiting:
                    self._fill()
            if self.polling < self.limit:
                self.polling += 1
                return
            bed = self._bed()
            self._spare.append(bed)
        bed.acquire()  # who wakes this thread has counted it

    def polled(self) -> None:
        """Poll no more, without having something to do."""
        with self._lock:
            self.polling -= 1

    def run(self, *, from_poll: bool = False) -> None:
        """Take a slot, or wait for one. `from_poll`: this thread has been polling, and now has something to do."""
        with self._lock:
            self.begun += 1
            if from_poll:
                self.polling -= 1
            if self.running < self.limit:
                self.running += 1
                if self.polling or self._fill():
                    return
                bed = None
            else:
                bed = self._bed()
                self._waiting.append(bed)
        self._when_short()
        if bed is not None:
            bed.acquire()

    def rest(self) -> None:
        """Give the slot back."""
        with self._lock:
            self.running -= 1
            self._fill()

    def lend(self, slots: int) -> None:
        """Have `slots` in all from now on; those that are too many are not replaced."""
        with self._lock:
            self.limit = slots
            while self._fill():
                pass

    def need_poller(self) -> None:
        """Have somebody poll, if a slot is free for it."""
        with self._lock:
            if not self.polling:
                self._fill()

    def _fill(self) -> bool:
        if self.running >= self.limit:
            return False
        if self._waiting:
            self.running += 1
            self._waiting.popleft().release()
            return True
        if not self.polling and self._spare:
            self.polling += 1
            self._spare.popleft().release()
            return True
        return False

    # --- for what the running thread waits for ---------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether this thread holds a slot."""
        return getattr(self._mine, "held", False)

    @held.setter
    def held(self, held: bool) -> None:
        self._mine.held = held

    def begin_wait(self) -> bool:
        """This thread is about to wait for something; whether it held a slot, which it has to take again."""
        if not getattr(self._mine, "held", False):
            return False
        self._mine.held = False
        self.rest()
        return True

    def end_wait(self) -> None:
        """It has what it waited for."""
        self.run()
        self._mine.held = True


class Governor:
    """Decides how many slots there are: looks every few milliseconds, as long as everybody is busy.

    A thread that waits for something unseen (another service, a lock, `sleep`) keeps its slot and uses no processor; so
    does everything if what runs never ends. Then there are to be more slots; when the processor is busy again, fewer.
    """

    IDLE = 0.3  # share of one processor; below it the interpreter idles
    BUSY = 0.8
    LONGEST = 0.1  # seconds between two looks that still say something
    PATIENCE = 4  # looks in which nothing new has begun, after which what runs is not waited for

    def __init__(self, slots: RunSlots, threads: int, now: float, used: float) -> None:
        self._slots = slots
        self._threads = threads
        self._now, self._used = now, used
        self._begun = 0
        self._stalled = 0  # looks since something has begun

    def look(self, now: float, used: float) -> int:
        """Look, and return how often somebody has begun to run since.

        `now`, `used`: seconds, on the clock, and of all processors by this process.
        """
        slots = self._slots
        passed, share = now - self._now, used - self._used
        begun, self._begun = slots.begun - self._begun, slots.begun
        self._now, self._used = now, used
        if not 0 < passed < self.LONGEST:
            return begun
        busy = share / passed
        self._stalled = 0 if begun else self._stalled + 1
        wanted = slots.waiting or (not slots.polling and slots.spare)
        if wanted and slots.running >= slots.limit and busy < self.IDLE:
            slots.lend(min(self._threads, slots.limit * 3))
        elif wanted and slots.running >= slots.limit and self._stalled >= self.PATIENCE:
            self._stalled = 0
            slots.lend(min(self._threads, slots.limit + 1))
        elif slots.limit > slots.base and busy > self.BUSY and begun:
            slots.lend(max(slots.base, slots.limit // 2))
        return begun
