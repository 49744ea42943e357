"""When an event happened, of what was read and when."""

from __future__ import annotations

from typing import Any

import pytest

from pooldrain_compare.parity.transcript_pipe import last_happened


def event(name: str, t: float, pid: int = 1) -> dict[str, Any]:
    return {"event": name, "t": t, "pid": pid}


def disposing(record: dict[str, Any]) -> bool:
    return bool(record["event"] == "disposing")


def test_an_event_that_is_read_late_happened_when_its_process_says() -> None:
    read = [(event("started", 0.5), 100.501), (event("disposing", 2.0), 102.7)]
    assert last_happened(read, disposing) == pytest.approx(102.001)


def test_events_that_are_read_afterwards_count_as_well() -> None:
    read = [(event("started", 0.5), 100.9), (event("disposing", 2.0), 102.7), (event("stopped", 2.8), 102.801)]
    assert last_happened(read, disposing) == pytest.approx(102.001)


def test_each_process_counts_from_its_own_begin() -> None:
    read = [
        (event("started", 0.0, pid=1), 100.0),
        (event("started", 0.0, pid=2), 200.0),
        (event("disposing", 9.0, pid=1), 300.0),
        (event("disposing", 1.0, pid=2), 300.0),
    ]
    assert last_happened(read, disposing) == pytest.approx(201.0)


def test_what_did_not_happen_has_no_instant() -> None:
    assert last_happened([(event("started", 0.0), 100.0)], disposing) is None
