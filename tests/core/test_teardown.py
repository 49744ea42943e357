"""The application's end: who runs, who has failed, and what is told once nobody waits."""

from __future__ import annotations

import pytest

from pooldrain.teardown import Ending

Told = list[tuple[str, str]]


@pytest.fixture(name="told")
def _told() -> Told:
    return []


def ending(told: Told, *names: str) -> Ending:
    return Ending(
        [(name, lambda: None) for name in names], lambda what, error: told.append((what, type(error).__name__))
    )


def test_what_has_been_called_through_is_not_abandoned(told: Told) -> None:
    end = ending(told, "first", "second")
    assert len(list(end)) == 2
    assert end.abandon() is None


def test_without_functions_there_is_nothing_to_wait_for(told: Told) -> None:
    end = ending(told)
    assert not end
    assert end.abandon() is None


def test_one_that_was_never_reached_is_abandoned_by_name(told: Told) -> None:
    assert ending(told, "first", "second").abandon() == "first"


def test_the_one_that_fails_is_named_and_the_next_one_runs(told: Told) -> None:
    end = ending(told, "first", "second")
    calls = iter(end)
    next(calls)
    end.failed(KeyError())
    next(calls)
    assert told == [("the shutdown function first", "KeyError")]
    assert end.abandon() == "second"


def test_what_was_abandoned_tells_nothing_and_no_other_runs(told: Told) -> None:
    end = ending(told, "first", "second")
    calls = iter(end)
    next(calls)
    assert end.abandon() == "first"
    end.failed(KeyError())
    assert list(calls) == []
    assert told == []
