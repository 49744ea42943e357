"""The shapes of `/status`: as its schema says, added up over processes, in short for a shutdown."""

from __future__ import annotations

import json
from importlib.resources import files
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest

import pooldrain
from pooldrain.leak_rules import LeakRule
from pooldrain.meter import BOUNDS, OTHER_METHOD, Histogram, RequestMeter
from pooldrain.phases import Phase
from pooldrain.snapshot import (
    Counters,
    EngineCounters,
    ServiceStatus,
    added,
    last_shutdown,
    no_counters,
    service_phase,
)

SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a type that `/status` is made of."""
    if kind in SIMPLE:
        return {"type": SIMPLE[kind]}
    if is_typeddict(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}
            properties = {name: schema_of(hint, definitions) for name, hint in get_type_hints(kind).items()}
            definitions[kind.__name__] = {
                "description": kind.__doc__,
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if get_origin(kind) is list:
        return {"type": "array", "items": schema_of(get_args(kind)[0], definitions)}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": schema_of(get_args(kind)[1], definitions)}
    return {"anyOf": [schema_of(each, definitions) for each in get_args(kind)]}


def status_schema() -> dict[str, Any]:
    """The schema of `/status`."""
    definitions: dict[str, Any] = {}
    whole = schema_of(ServiceStatus, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "/status",
        **whole,
        "$defs": definitions,
    }


def engine(name: str, opened: int, wait: float = 0.0) -> EngineCounters:
    waits = Histogram()
    if wait:
        waits.observe(wait)
    return {
        "name": name,
        "opened": opened,
        "closed": 0,
        "timeouts": 1,
        "leaks": {rule.value: 0 for rule in LeakRule} | {"unreturned": opened},
        "wait": waits.data(),
        "use": Histogram().data(),
        "connect": Histogram().data(),
    }


def counters(finished: int, *engines: EngineCounters, status: int | None = 200) -> Counters:
    meter = RequestMeter()
    for _ in range(finished):
        meter.observe("GET", status, 0.002)
    durations = [{"method": m, "status": s, "seconds": h.data()} for (m, s), h in meter.durations.items()]
    return {**no_counters(), "finished": finished, "durations": durations, "engines": list(engines)}  # type: ignore[typeddict-item]  # as data


def test_the_schema_is_that_of_the_types() -> None:
    told = json.loads((files(pooldrain) / "status.schema.json").read_text("utf-8"))
    assert told == status_schema()


def test_counters_of_several_processes_are_added_engine_by_engine() -> None:
    total = added([counters(2, engine("main", 3, 0.002)), counters(5, engine("main", 4, 7.0), engine("shop", 1))])
    assert total["finished"] == 7
    [main, shop] = total["engines"]
    assert (main["name"], main["opened"], main["timeouts"], main["leaks"]["unreturned"]) == ("main", 7, 2, 7)
    assert sum(main["wait"]["counts"]) == 2
    assert main["wait"]["sum"] == pytest.approx(7.002)
    assert (shop["name"], shop["opened"]) == ("shop", 1)
    [row] = total["durations"]
    assert (row["method"], row["status"], sum(row["seconds"]["counts"])) == ("GET", 200, 7)


def test_requests_are_counted_apart_by_method_and_status() -> None:
    total = added([counters(1, status=200), counters(1, status=None), counters(2, status=200)])
    counts = {(row["method"], row["status"]): sum(row["seconds"]["counts"]) for row in total["durations"]}
    assert counts == {("GET", 200): 3, ("GET", None): 1}


def test_adding_changes_nothing_that_was_added() -> None:
    one = counters(2, engine("main", 3, 0.002))
    before = json.dumps(one)
    added([one, counters(1, engine("main", 1, 0.1))])
    assert json.dumps(one) == before


@pytest.mark.parametrize("seconds", [0.0, *BOUNDS, 31.0])
def test_a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed(seconds: float) -> None:
    histogram = Histogram()
    histogram.observe(seconds)
    [place] = [place for place, count in enumerate(histogram.counts) if count]
    assert place == len(BOUNDS) or seconds <= BOUNDS[place]
    assert place == 0 or seconds > BOUNDS[place - 1]


def test_methods_that_clients_make_up_are_counted_together() -> None:
    meter = RequestMeter()
    for number in range(100):
        meter.observe(f"METHOD{number}", 405, 0.1)
    assert list(meter.durations) == [(OTHER_METHOD, 405)]
    assert sum(meter.durations[OTHER_METHOD, 405].counts) == 100


@pytest.mark.parametrize(
    ("phases", "phase"),
    [
        ([], Phase.STARTING),
        (["STARTING", "READY"], Phase.READY),
        (["DRAINING", "READY"], Phase.READY),
        (["DRAINING", "CLOSED"], Phase.DRAINING),
        (["CLOSED"], Phase.CLOSED),
    ],
)
def test_a_service_is_ready_as_long_as_one_of_its_processes_is(phases: list[str], phase: Phase) -> None:
    assert service_phase(phases) is phase


@pytest.mark.parametrize("report", [{}, {"requests": {}}, {"requests": None, "connections": {}}])
def test_what_is_no_report_is_not_taken_for_one(report: dict[str, Any]) -> None:
    with pytest.raises((LookupError, TypeError)):
        last_shutdown(report)
