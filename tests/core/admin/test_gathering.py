"""What is kept of processes that serve and of those that have ended. No process here, no clock."""

from __future__ import annotations

from typing import Any

from pooldrain.admin.gathering import Gathering
from pooldrain.snapshot import ProcessStatus, no_counters

REPORT: dict[str, Any] = {
    "outcome": "drained",
    "exit_code": 0,
    "signal": "SIGTERM",
    "seconds": 0.2,
    "phases": [{"phase": "DRAINING", "seconds": 0.1}],
    "requests": {"finished": 9, "refused": 1, "cut": 0},
    "outstanding": [],
    "connections": {"reclaimed": 0, "abandoned": 0},
}


def status(pid: int, finished: int, phase: str = "READY") -> ProcessStatus:
    return {
        "pid": pid,
        "seen": 0.0,
        "uptime": 1.0,
        "phase": phase,
        "phases": [],
        "signals": [],
        "in_flight": 0,
        "waiting": 0,
        "requests": [],
        "engines": [],
        "counters": {**no_counters(), "finished": finished},
    }


def gathering() -> Gathering:
    return Gathering("pooldrain-sync", "1.0")


def test_totals_never_fall_when_a_process_is_killed() -> None:
    known = gathering()
    known.answered("a", status(1, 10), 5.0)
    known.answered("b", status(2, 20), 5.0)
    assert known.document(6.0)["totals"]["finished"] == 30
    known.gone("a", None, None)
    known.answered("c", status(3, 0), 7.0)
    document = known.document(7.0)
    assert document["totals"]["finished"] == 30
    assert [worker["pid"] for worker in document["workers"]] == [2, 3]
    assert document["ended"] == 1


def test_the_last_words_of_a_process_count_and_not_what_it_said_before() -> None:
    known = gathering()
    known.answered("a", status(1, 10), 5.0)
    known.gone("a", status(1, 12, "CLOSED"), REPORT)
    document = known.document(6.0)
    assert document["totals"]["finished"] == 12
    assert document["last_shutdown"] is not None
    assert document["last_shutdown"]["finished"] == 9


def test_a_process_that_has_never_answered_is_counted_as_ended_and_nothing_else() -> None:
    known = gathering()
    known.gone("a", None, None)
    document = known.document(1.0)
    assert (document["ended"], document["workers"], document["phase"]) == (1, [], "STARTING")


def test_when_all_have_ended_the_last_one_is_shown_as_it_was() -> None:
    known = gathering()
    known.answered("a", status(1, 10), 5.0)
    known.gone("a", status(1, 12, "CLOSED"), REPORT)
    document = known.document(6.0)
    assert [worker["pid"] for worker in document["workers"]] == [1]
    assert document["phase"] == "CLOSED"


def test_it_tells_how_long_ago_a_process_has_answered() -> None:
    known = gathering()
    known.answered("a", status(1, 10), 5.0)
    assert known.document(7.5)["workers"][0]["seen"] == 2.5


def test_what_it_was_told_stays_as_it_was() -> None:
    known, told = gathering(), status(1, 10)
    known.answered("a", told, 5.0)
    known.document(9.0)
    assert told["seen"] == 0.0
