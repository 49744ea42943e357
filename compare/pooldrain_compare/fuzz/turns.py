"""Threads that take turns, on a clock that only moves when it is told to.

One thread runs at a time, until it waits; then the one that has been ready longest. That is how tasks on an event
loop take turns, so that the same scenario takes the same course in both colours, every time. It holds as long as
threads wait through here: for conditions, for each other, for time.
"""

from __future__ import annotations

import contextvars
import heapq
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

# Real seconds after which a thread that does not give up its turn is an error of the harness.
PATIENCE = 30.0


class Over(BaseException):
    """Raised where a thread waits when the trial is over."""


class _Seat:
    """One thread's place: it waits here for its turn."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.turn.acquire()
        self.waiting = False
        self.woken = False
        self.round = 0  # how often it has waited: a timer of an earlier round is stale


class Turns:
    """The threads of one trial."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self.errors: list[BaseException] = []  # that ended a thread
        self._over = False
        self._ready: deque[_Seat] = deque()
        self._timers: list[tuple[float, int, _Seat, int]] = []
        self._serial = count()
        self._here = threading.local()
        self._seats: set[_Seat] = set()
        self._director = threading.Semaphore(0)

    def clock(self) -> float:
        """Monotonic seconds."""
        return self.now

    # --- for the threads ---------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> bool:
        """Let the others run until woken (True), or until `timeout` seconds have passed (False)."""
        if self._over:
            raise Over
        seat: _Seat = self._here.seat
        seat.waiting = True
        seat.round += 1
        if timeout is not None:
            heapq.heappush(self._timers, (self.now + max(0.0, timeout), next(self._serial), seat, seat.round))
        self._pass_on()
        seat.turn.acquire()
        if self._over:
            raise Over
        return seat.woken

    def wake(self, seat: _Seat, *, woken: bool = True) -> None:
        """Let a waiting thread run, after those that are ready already."""
        if seat.waiting:
            seat.waiting = False
            seat.woken = woken
            self._ready.append(seat)

    def sleep(self, seconds: float) -> None:
        """Stands for `time.sleep`."""
        self.wait(seconds)

    @property
    def seat(self) -> _Seat:
        """The running thread's."""
        seat: _Seat = self._here.seat
        return seat

    def start(self, target: Callable[[], object]) -> None:
        """Run `target` in a thread of its own, when its turn comes."""
        seat = _Seat()
        self._seats.add(seat)
        self._ready.append(seat)
        _hire(lambda: self._run(seat, target))

    def _run(self, seat: _Seat, target: Callable[[], object]) -> None:
        self._here.seat = seat
        seat.turn.acquire()
        try:
            if not self._over:
                contextvars.Context().run(target)
        except Over:
            pass
        except BaseException as error:  # noqa: BLE001 - the director shall know
            self.errors.append(error)
        finally:
            self._seats.discard(seat)
            self._pass_on()

    def _pass_on(self) -> None:
        if self._ready:
            self._ready.popleft().turn.release()
        else:
            self._director.release()

    # --- for the director, who runs when no thread can ---------------------------------------------------

    def run(self) -> None:
        """Let the threads run until all of them wait."""
        if self._ready:
            self._ready.popleft().turn.release()
            if not self._director.acquire(timeout=PATIENCE):
                raise RuntimeError("a thread waits for something that the harness does not know of")

    def next_timer(self) -> float | None:
        """When the next thread has waited long enough."""
        while self._timers and not self._is_due(self._timers[0]):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def _is_due(self, timer: tuple[float, int, _Seat, int]) -> bool:
        _, _, seat, waited = timer
        return seat.waiting and seat.round == waited

    def move_to(self, now: float) -> None:
        """Let time pass, and those wake whose time has come."""
        while (due := self.next_timer()) is not None and due <= now:
            self.now = max(self.now, due)
            self.wake(heapq.heappop(self._timers)[2], woken=False)
            self.run()
        self.now = max(self.now, now)

    def end(self) -> None:
        """End every thread, where it waits."""
        self._over = True
        while self._seats:
            for seat in list(self._seats):
                self.wake(seat)
            if not self._ready:
                raise RuntimeError("a thread does not end")
            self.run()


class Condition:
    """Stands for `threading.Condition`."""

    def __init__(self, turns: Turns, lock: Any) -> None:
        self._turns = turns
        self._lock = lock
        self._waiters: deque[_Seat] = deque()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Give up the lock until notified."""
        seat = self._turns.seat
        self._waiters.append(seat)
        held = self._lock._release_save()
        try:
            return self._turns.wait(timeout)
        finally:
            self._lock._acquire_restore(held)
            with suppress(ValueError):
                self._waiters.remove(seat)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until the predicate holds; its last value."""
        deadline = None if timeout is None else self._turns.now + timeout
        while not (happened := predicate()):
            left = None if deadline is None else deadline - self._turns.now
            if left is not None and left <= 0:
                break
            self.wait(left)
        return happened

    def notify(self, n: int = 1) -> None:
        """Wake the first `n`."""
        for _ in range(min(n, len(self._waiters))):
            self._turns.wake(self._waiters.popleft())

    def notify_all(self) -> None:
        """Wake all of them."""
        self.notify(len(self._waiters))


class Thread:
    """Stands for `threading.Thread`."""

    def __init__(
        self, turns: Turns, target: Callable[..., object], args: Sequence[Any] = (), name: str = "", daemon: bool = True
    ) -> None:
        self._turns = turns
        self._target = target
        self._args = args
        self._alive = False
        self._joiners: list[_Seat] = []

    def start(self) -> None:
        """Make it ready."""
        self._alive = True
        self._turns.start(self._run)

    def _run(self) -> None:
        try:
            self._target(*self._args)
        finally:
            self._alive = False
            for seat in self._joiners:
                self._turns.wake(seat)

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        deadline = None if timeout is None else self._turns.now + timeout
        while self._alive:
            left = None if deadline is None else deadline - self._turns.now
            if left is not None and left <= 0:
                return
            self._joiners.append(self._turns.seat)
            self._turns.wait(left)

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._alive


class Modules:
    """Stands for the modules `threading` and `time` in the threaded shell and in SQLAlchemy's queue."""

    RLock = staticmethod(threading.RLock)
    Lock = staticmethod(threading.Lock)

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.monotonic = turns.clock
        self.sleep = turns.sleep

    def Thread(self, target: Callable[..., object], **options: Any) -> Thread:  # noqa: N802 - the module's name for it
        """A thread that takes turns."""
        return Thread(self._turns, target, **options)

    def Condition(self, lock: Any = None) -> Condition:  # noqa: N802 - the module's name for it
        """A condition that is waited for in turns."""
        return Condition(self._turns, threading.RLock() if lock is None else lock)


@contextmanager
def replaced(modules: Sequence[tuple[Any, str]], stand_in: object) -> Generator[None, None, None]:
    """Put `stand_in` in the place of these modules' attributes."""
    kept = [(module, name, getattr(module, name)) for module, name in modules]
    for module, name, _ in kept:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


# --- real threads, kept for the next trial: a trial has more of them than a start is worth ---------------------

_idle: list[_Hand] = []


class _Hand:
    """A real thread that does one job after another."""

    def __init__(self) -> None:
        self._job: Callable[[], object] | None = None
        self._called = threading.Semaphore(0)
        threading.Thread(target=self._work, name="fuzz", daemon=True).start()

    def do(self, job: Callable[[], object]) -> None:
        self._job = job
        self._called.release()

    def _work(self) -> None:
        while True:
            self._called.acquire()
            job, self._job = self._job, None
            assert job is not None
            job()
            del job
            _idle.append(self)


def _hire(job: Callable[[], object]) -> None:
    try:
        hand = _idle.pop()
    except IndexError:
        hand = _Hand()
    hand.do(job)
