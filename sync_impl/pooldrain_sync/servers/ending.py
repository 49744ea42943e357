"""What the main thread of a threaded server knows of signals, and of the shutdown that the first of them begins."""

from __future__ import annotations

import contextlib
import select
import signal
import threading
from collections.abc import Callable, Iterable, Sequence

from pooldrain.runtime.listener import BROKEN_PAUSE
from pooldrain.runtime.process.signals import SignalWatch
from pooldrain.shutdown import ShutdownReport
from pooldrain_sync.runner import Runner


class Ending:
    """The shutdown: a thread of its own runs it, while the main one goes on to turn."""

    def __init__(
        self,
        runner: Runner,
        watch: SignalWatch,
        *,
        due: Callable[[], Iterable[str]],
        shut_down: Callable[[], ShutdownReport],
        wake: Callable[[], None],
    ) -> None:
        """`due`: the signals that are to be told now; `wake` wakes the main thread."""
        self._runner = runner
        self._watch = watch
        self._due = due
        self._run_shutdown = shut_down
        self._wake = wake
        self._thread: threading.Thread | None = None
        self._told = False
        self.over = threading.Event()
        self.report: ShutdownReport | None = None

    def turn(
        self, woken_by: Sequence[int], patience: Callable[[], float], turn: Callable[[], None]
    ) -> ShutdownReport | None:
        """Call `turn` whenever one of these descriptors is readable, or `patience()` seconds have passed, to the end.

        Returns the report, unless the thread of the shutdown has died.
        """
        poll = select.poll()
        for descriptor in woken_by:
            poll.register(descriptor, select.POLLIN)
        self.attend_signals()
        while not self.over.is_set():
            try:
                poll.poll(patience() * 1000)
                turn()
            except Exception as error:  # noqa: BLE001 - whatever it is, what it serves is to be ended in order
                self._broken(error)
        assert self._thread is not None
        self._thread.join()
        return self.report

    def attend_signals(self) -> None:
        """Tell the runner of what has come; the first signal begins the end."""
        for name in self._watch.take_ignored():
            self._runner.signal_ignored(name)
        for name in self._due():
            self._told = True
            self._runner.signalled(name)
        if self._told and self._thread is None:
            thread = threading.Thread(target=self._shut_down, name="pooldrain-shutdown")
            thread.start()  # if there is no room for it: at the next turn
            self._thread = thread

    def _broken(self, error: Exception) -> None:
        """A turn has failed: tell it, and end in order, which the turns that still succeed help with."""
        self._runner.failed("the server's loop", error)
        if not self._watch.received:
            self._watch.handle(signal.SIGTERM)
        with contextlib.suppress(Exception):
            self.attend_signals()
        self.over.wait(BROKEN_PAUSE)

    def _shut_down(self) -> None:
        try:
            self.report = self._run_shutdown()
        finally:
            self.over.set()
            self._wake()
