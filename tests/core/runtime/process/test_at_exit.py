"""The application's `atexit` functions are kept for its end; everybody else's stay where they are."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Iterator
from functools import partial

import pytest

from pooldrain.runtime.process.at_exit import AtExit


@pytest.fixture(name="at_exit")
def _at_exit() -> Iterator[AtExit]:
    register, unregister = atexit.register, atexit.unregister
    at_exit = AtExit()
    at_exit.collect()
    yield at_exit
    at_exit.take()
    atexit.register, atexit.unregister = register, unregister
    atexit.unregister(at_exit._run)


def test_the_last_one_registered_is_the_first_one_called(at_exit: AtExit) -> None:
    called: list[str] = []

    def say(word: str, *, mark: str = "") -> None:
        called.append(word + mark)

    atexit.register(say, "first")
    atexit.register(say, "second", mark="!")
    for function in at_exit.take():
        function()
    assert called == ["second!", "first"]
    assert at_exit.take() == []


def test_one_that_is_unregistered_is_not_called(at_exit: AtExit) -> None:
    def gone() -> None: ...

    def kept() -> None: ...

    atexit.register(gone)
    atexit.register(kept)
    atexit.unregister(gone)
    (function,) = at_exit.take()
    assert isinstance(function, partial)
    assert function.func is kept


def test_the_standard_librarys_stay_for_the_exit(at_exit: AtExit) -> None:
    atexit.register(logging.shutdown)
    assert at_exit.take() == []
    atexit.unregister(logging.shutdown)


def test_a_decorator_gives_the_function_back(at_exit: AtExit) -> None:
    @atexit.register
    def end() -> None: ...

    assert callable(end)
    assert len(at_exit.take()) == 1


def test_what_nobody_has_run_runs_at_the_exit(at_exit: AtExit) -> None:
    def left() -> None: ...

    atexit.register(left)
    before = atexit._ncallbacks()
    at_exit._run()
    assert atexit._ncallbacks() == before + 1
    assert at_exit.take() == []
