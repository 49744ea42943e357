"""What a process remembers of its signals, and what wakes it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pooldrain.runtime.process.signals import IGNORED_SIGNALS, SHUTDOWN_SIGNALS, SignalWatch
from tests.harness.programs import SIGNAL_ONCE_IT_WAITS

Naming = type(signal.SIGTERM)

# Those that keep their default, which is to kill: see the module.
_BUGS = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP", "SIGSTKFLT")
_ARMED = ("SIGALRM", "SIGVTALRM", "SIGPROF", "SIGXCPU", "SIGXFSZ", "SIGIO", "SIGPWR")  # by a timer, a limit, a machine
_OTHERS = ("SIGKILL", "SIGPIPE", "SIGRTMIN", "SIGRTMAX")  # not to be handled; ignored by Python; nobody's
_HARMLESS = ("SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGWINCH")


def run(program: str) -> tuple[int, str]:
    """Run a program of its own; its exit code and what it has printed."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.strip()


def test_every_signal_is_decided_upon() -> None:
    decided = {number.name for number in (*SHUTDOWN_SIGNALS, *IGNORED_SIGNALS)}
    assert decided.isdisjoint((*_BUGS, *_ARMED, *_OTHERS, *_HARMLESS))
    assert {number.name for number in signal.Signals} <= {*decided, *_BUGS, *_ARMED, *_OTHERS, *_HARMLESS}


def test_a_worker_takes_the_first_of_two_signals_that_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = SignalWatch(managed=True)
    waiting = [signal.SIGTERM]  # comes while the first one is handled

    def naming(number: int) -> signal.Signals:
        if waiting:
            watch.handle(waiting.pop())
        return Naming(number)

    monkeypatch.setattr(signal, "Signals", naming)
    watch.handle(signal.SIGTERM)
    assert watch.received == ["SIGTERM"], "a second one would hurry it"


def test_a_signal_at_any_line_of_listening_is_received_once_and_heard_of() -> None:
    code, told = run("""
import os, signal, sys
from pooldrain.runtime.process.signals import SignalWatch

lines = SignalWatch.listen.__code__
for line in sorted({number for _, _, number in lines.co_lines() if number}):
    watch, calls = SignalWatch(), []
    watch.install()

    def trace(frame, event, argument):
        if frame.f_code is lines and event == "line" and frame.f_lineno == line and not watch.received:
            os.kill(os.getpid(), signal.SIGTERM)
        return trace

    sys.settrace(trace)
    watch.listen(lambda: calls.append(1))
    sys.settrace(None)
    if not watch.received:  # no line of its own
        continue
    print(watch.received, bool(calls))
""")
    assert code == 0
    assert set(told.splitlines()) == {"['SIGTERM'] True"}


def test_who_listens_hears_of_a_signal_that_came_before_and_of_those_that_come_after() -> None:
    watch = SignalWatch()
    heard: list[int] = []
    watch.handle(signal.SIGINT)
    watch.listen(lambda: heard.append(len(watch.received)))
    watch.handle(signal.SIGTERM)
    assert heard == [1, 2]
    assert watch.received == ["SIGINT", "SIGTERM"]


def test_sigquit_is_as_if_it_came_twice_but_for_a_worker_whose_master_tells_it() -> None:
    alone, managed = SignalWatch(), SignalWatch(managed=True)
    alone.handle(signal.SIGQUIT)
    managed.handle(signal.SIGQUIT)
    assert (alone.received, managed.received) == (["SIGQUIT", "SIGQUIT"], ["SIGQUIT"])


def test_sigquit_after_another_signal_is_the_second_one() -> None:
    watch = SignalWatch()
    watch.handle(signal.SIGTERM)
    watch.handle(signal.SIGQUIT)
    assert watch.received == ["SIGTERM", "SIGQUIT"]


@pytest.mark.parametrize("managed", [False, True])
def test_what_is_ignored_asks_for_nothing_and_is_told_once(managed: bool) -> None:
    watch = SignalWatch(managed=managed)
    heard: list[int] = []
    watch.listen(lambda: heard.append(1))
    for number in IGNORED_SIGNALS:
        watch.handle(number)
    assert (watch.received, heard) == ([], [])
    assert watch.take_ignored() == ["SIGHUP", "SIGUSR1", "SIGUSR2"]
    assert watch.take_ignored() == []


def test_a_third_signal_exits_with_its_number() -> None:
    code, told = run("""
import signal
from pooldrain.runtime.process.signals import SignalWatch
watch = SignalWatch()
watch.install()
for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
    signal.raise_signal(number)
print("too late")
""")
    assert (code, told) == (128 + signal.SIGINT, "")


# Python tells of signals in the main thread alone, between two instructions. One that the kernel hands to another
# thread does not interrupt what the main thread waits in: just as one that comes a moment before it begins to wait.
def test_a_signal_that_does_not_interrupt_the_wait_ends_it() -> None:
    code, told = run(
        """
import select
from pooldrain.runtime.process.signals import SignalWatch
watch = SignalWatch()
watch.install()
"""
        + SIGNAL_ONCE_IT_WAITS
        + """
ready = select.select([watch], [], [], 20)[0]
watch.drain()
print(ready == [watch], watch.received, select.select([watch], [], [], 0)[0])
"""
    )
    assert (code, told) == (0, "True ['SIGTERM'] []")


def test_a_forked_child_dies_at_a_signal_and_does_not_wake_its_parent() -> None:
    code, told = run("""
import os, select, signal
from pooldrain.runtime.process.signals import IGNORED_SIGNALS, SHUTDOWN_SIGNALS, SignalWatch
watch = SignalWatch()
watch.install()
for number in (*SHUTDOWN_SIGNALS, *IGNORED_SIGNALS):
    if not (child := os.fork()):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(number)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number, number
print(select.select([watch], [], [], 0)[0], watch.received, watch.take_ignored())
""")
    assert (code, told) == (0, "[] [] []")
