"""The report file: one shape for one process and for several, as the schema that ships with it says."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import pooldrain
from pooldrain.ledger import Holding
from pooldrain.phases import Phase
from pooldrain.service_report import service_report
from pooldrain.shutdown import ConnectionCounts, CutRequest, Outcome, RequestCounts, ShutdownReport

SCHEMA = json.loads((files(pooldrain) / "report.schema.json").read_text("utf-8"))
LEAKS = {"collected": 1, "unreturned": 2, "overdue": 0, "pinned": 0, "threshold": 1}


def process(outcome: Outcome, code: int, *, seconds: float = 1.0, signals: int = 1) -> dict[str, Any]:
    report = ShutdownReport(
        outcome=outcome,
        exit_code=code,
        signal="SIGTERM",
        signals=signals,
        hurried=signals > 1,
        phases=((Phase.ANNOUNCING, 0.1), (Phase.DRAINING, seconds)),
        seconds=seconds,
        requests=RequestCounts(1, 5, 2, 1),
        cut_requests=(CutRequest("r1", "GET /work", 2.0, 503, "app.py:1 in work", "SELECT 1"),),
        outstanding=(Holding("GET /leak", None, 3.0, "", (), None, None, "unreturned"),),
        leaks=LEAKS,
        connections=ConnectionCounts(10, 8, 1, 1),
        errors=("DRAINING: OSError: gone",),
    )
    read: dict[str, Any] = json.loads(json.dumps(report.as_dict()))
    return read


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_report_is_as_its_schema_says_whatever_the_number_of_workers(number: int) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(service_report([process(Outcome.CUT, 3)] * number, 3))


@pytest.mark.parametrize("missing", ["workers", "outcome", "requests"])
def test_the_schema_wants_every_key(missing: str) -> None:
    report = service_report([process(Outcome.CUT, 3)], 3)
    del report[missing]
    assert not Draft202012Validator(SCHEMA).is_valid(report)
    assert not Draft202012Validator(SCHEMA).is_valid({**service_report([process(Outcome.CUT, 3)], 3), "more": 1})


def test_one_process_is_the_whole_service() -> None:
    only = process(Outcome.DRAINED, 0)
    assert service_report([only], 0) == {**only, "refused_by_master": 0, "workers": [only]}


def test_of_several_the_counts_are_summed_and_the_worst_is_told() -> None:
    good, bad = process(Outcome.DRAINED, 0, seconds=1.0), process(Outcome.CUT, 3, seconds=2.5, signals=2)
    report = service_report([good, bad], 3, refused_by_master=4)
    assert (report["outcome"], report["exit_code"], report["signals"], report["hurried"]) == ("cut", 3, 2, True)
    assert report["requests"] == {"in_flight_at_signal": 2, "finished": 10, "refused": 8, "cut": 2, "seen": 20}
    assert report["leaks"] == {name: 2 * count for name, count in LEAKS.items()}
    assert report["connections"] == {"opened": 20, "closed": 16, "reclaimed": 2, "abandoned": 2}
    assert [len(report[name]) for name in ("cut_requests", "outstanding", "errors")] == [2, 2, 2]
    assert report["phases"] == [{"phase": "ANNOUNCING", "seconds": 0.1}, {"phase": "DRAINING", "seconds": 2.5}]
    assert report["seconds"] == 2.5


def test_a_worker_that_was_killed_is_told_by_the_exit_code_alone() -> None:
    report = service_report([process(Outcome.DRAINED, 0)], 137)
    assert (report["outcome"], report["exit_code"]) == ("drained", 137)
