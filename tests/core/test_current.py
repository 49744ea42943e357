"""Code that was not handed its runner finds it, and registers what is to run at its end."""

from __future__ import annotations

import pytest

import pooldrain
from pooldrain import current


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current, "_runner", None)
    monkeypatch.setattr(current, "_at_shutdown", [])


def test_without_a_service_there_is_no_runner() -> None:
    assert pooldrain.current_runner() is None


def test_the_runner_is_the_one_that_serves() -> None:
    runner = object()
    current.set_current_runner(runner)
    assert pooldrain.current_runner() is runner


def test_what_is_registered_last_is_called_first_and_stays_what_it_was() -> None:
    @pooldrain.on_shutdown
    def first() -> None: ...

    def second() -> None: ...

    assert pooldrain.on_shutdown(second) is second
    assert current.functions_at_shutdown() == [second, first]
