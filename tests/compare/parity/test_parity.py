"""The parity suite can fail: each kind of divergence is planted, and seen. Twice over: in results, and for real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pooldrain.errors import ConfigurationError
from pooldrain_compare.cli import run
from pooldrain_compare.harness.processes import Ended
from pooldrain_compare.harness.servers import BACKENDS, COMPARED_WITH
from pooldrain_compare.parity.cases import Case, CaseResult, ParityOptions, Stage, compare_case, plan, stage
from pooldrain_compare.parity.comparison import ACCEPTED, Accepted, differences, facts, failures
from pooldrain_compare.parity.conductor import Observation
from pooldrain_compare.parity.scenarios import BY_NAME, POSTGRESQL
from pooldrain_compare.parity.table import markdown
from tests.compare.parity import sabotage

ROOT = Path(__file__).parents[3]
OURS, THEIRS = "waitress", "uvicorn"
# One with a row in the database, one with a leak that is reclaimed.
COMMITS, LEAKS = "transaction-commits", "leak-and-slow-request"

Plant = Callable[[Observation], None]


@pytest.fixture(scope="module")
def on(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(database_url, tmp_path_factory.mktemp("parity")) as made:
        yield made


@pytest.fixture(scope="module")
def observed(on: Stage) -> Callable[[str, str], Observation]:
    """A clean run of a scenario on a server; each is run once."""
    runs: dict[tuple[str, str], Observation] = {}

    def observe(scenario: str, server: str) -> Observation:
        if (scenario, server) not in runs:
            directory = on.directory / f"{scenario}-{server}"
            runs[scenario, server] = on.run(case(scenario), server, directory)
        return deepcopy(runs[scenario, server])

    return observe


def case(scenario: str) -> Case:
    return Case(BY_NAME[scenario], POSTGRESQL, (OURS, THEIRS))


def verdict(ours: Observation, theirs: Observation, accepted: tuple[Accepted, ...] = ()) -> CaseResult:
    return compare_case(case(ours.scenario.name), {OURS: ours, THEIRS: theirs}, accepted)


# --- planted in the results -----------------------------------------------------------------------------------


def _skip_phase(o: Observation) -> None:
    o.events = [event for event in o.events if event.get("phase") != "RECLAIMING"]


def _swap_phases(o: Observation) -> None:
    at = [number for number, event in enumerate(o.events) if event["event"] == "phase"]
    o.events[at[4]], o.events[at[5]] = o.events[at[5]], o.events[at[4]]


def _other_header(o: Observation) -> None:
    answer = o.answers["slow"]
    o.answers["slow"] = replace(answer, headers=tuple(pair for pair in answer.headers if pair[0] != "connection"))


def _other_status(o: Observation) -> None:
    o.answers["slow"] = replace(o.answers["slow"], status_line="HTTP/1.1 503 Service Unavailable")


def _other_body(o: Observation) -> None:
    o.answers["slow"] = replace(o.answers["slow"], body=o.answers["slow"].body.replace(b"\n", b""))


def _lost_answer(o: Observation) -> None:
    o.answers["slow"] = replace(o.answers["slow"], status_line="", failure="unanswered: closed")


def _reset(o: Observation) -> None:
    o.answers["slow"] = replace(o.answers["slow"], ending="reset")


def _lost_row(o: Observation) -> None:
    o.seen["orders"] = []


def _other_row(o: Observation) -> None:
    o.seen["orders"] = ["kept, reserved, 2"]


def _exit_code(o: Observation) -> None:
    assert o.ended is not None
    o.ended = Ended(0 if o.ended.code else 3, o.ended.at, stragglers=False)


def _straggler(o: Observation) -> None:
    assert o.ended is not None
    o.ended = replace(o.ended, stragglers=True)


def _leaked_backend(o: Observation) -> None:
    o.seen["sessions left"] = 1


def _too_many_sessions(o: Observation) -> None:
    o.seen["greatest number of sessions"] = 4


def _late_session(o: Observation) -> None:
    o.seen["sessions opened while disposing"] = 1


def _late(o: Observation) -> None:
    o.after_last_act = 9.0


def _slow_phase(o: Observation) -> None:
    assert o.report is not None
    next(phase for phase in o.reports[0]["phases"] if phase["phase"] == "DISPOSING")["seconds"] = 9.0


def _leak_missed(o: Observation) -> None:
    o.events = [event for event in o.events if event["event"] != "leak"]


def _report_differs(o: Observation) -> None:
    assert o.report is not None
    o.reports[0]["requests"]["finished"] += 1


def _no_report(o: Observation) -> None:
    o.report = None


def _warning(o: Observation) -> None:
    o.complaints["warning: log"] += 1


def _stray(o: Observation) -> None:
    o.stray.append("Traceback (most recent call last):")


def _one_session_more(o: Observation) -> None:
    o.seen["sessions at the signal"] += 1


@pytest.mark.parametrize(
    ("scenario", "plant"),
    [
        (LEAKS, _skip_phase),
        (LEAKS, _swap_phases),
        (LEAKS, _other_header),
        (LEAKS, _other_status),
        (LEAKS, _other_body),
        (LEAKS, _lost_answer),
        (LEAKS, _reset),
        (COMMITS, _lost_row),
        (COMMITS, _other_row),
        (LEAKS, _exit_code),
        (LEAKS, _straggler),
        (LEAKS, _leaked_backend),
        (LEAKS, _late_session),
        (LEAKS, _too_many_sessions),
        (LEAKS, _late),
        (LEAKS, _slow_phase),
        (LEAKS, _leak_missed),
        (LEAKS, _report_differs),
        (LEAKS, _no_report),
        (LEAKS, _warning),
        (LEAKS, _stray),
        (LEAKS, _one_session_more),
    ],
)
def test_a_planted_divergence_is_caught(
    observed: Callable[[str, str], Observation], scenario: str, plant: Plant
) -> None:
    ours, theirs = observed(scenario, OURS), observed(scenario, THEIRS)
    assert verdict(ours, theirs).complaints() == [], "clean without the plant"
    plant(ours)
    planted = verdict(ours, theirs)
    assert not planted.good
    assert planted.cell(OURS) in ("FAILED", "DIFFERENT")
    assert planted.complaints()


@pytest.mark.parametrize(
    ("plant", "fact"),
    [
        (_skip_phase, "transcript of worker 1"),
        (_other_header, "answer to slow"),
        (_exit_code, "exit code"),
        (_leaked_backend, "database: sessions left"),
        (_report_differs, "report of worker 1"),
        (_one_session_more, "database: sessions at the signal"),
    ],
)
def test_a_difference_is_a_difference_even_if_nobody_expected_anything(
    observed: Callable[[str, str], Observation], plant: Plant, fact: str
) -> None:
    ours, theirs = observed(LEAKS, OURS), observed(LEAKS, THEIRS)
    plant(ours)
    assert fact in [each.fact for each in differences(ours, theirs, ())]
    plant(theirs)
    assert fact not in [each.fact for each in differences(ours, theirs, ())]


@pytest.mark.parametrize("plant", [_late, _slow_phase, _leaked_backend, _lost_answer, _exit_code, _skip_phase])
def test_what_is_wrong_on_both_is_wrong(observed: Callable[[str, str], Observation], plant: Plant) -> None:
    theirs = observed(LEAKS, THEIRS)
    plant(theirs)
    assert failures(theirs)


def test_both_sides_are_shown(observed: Callable[[str, str], Observation]) -> None:
    ours, theirs = observed(LEAKS, OURS), observed(LEAKS, THEIRS)
    _other_header(ours)
    [complaint] = verdict(ours, theirs).complaints()
    assert f"{LEAKS} on postgresql, waitress and uvicorn differ in the answer to slow" in complaint
    assert '-  "connection: close",' in complaint
    assert "--- uvicorn" in complaint
    assert "+++ waitress" in complaint


# --- accepted differences -------------------------------------------------------------------------------------


def test_an_accepted_difference_stands_with_its_reason(observed: Callable[[str, str], Observation]) -> None:
    ours, theirs = observed(LEAKS, OURS), observed(LEAKS, THEIRS)
    _other_header(ours)
    entry = Accepted(LEAKS, (OURS,), ("answer to slow",), "because")
    accepted = verdict(ours, theirs, (entry,))
    assert accepted.good
    assert accepted.cell(OURS) == "accepted"
    assert accepted.accepted == [entry]
    assert "because" in markdown([accepted])
    _one_session_more(ours)  # another fact is not covered by it
    assert not verdict(ours, theirs, (entry,)).good
    assert not verdict(ours, theirs, (replace(entry, servers=("gunicorn",)),)).good
    assert not verdict(ours, theirs, (replace(entry, scenario="idle"),)).good


def test_an_accepted_difference_that_is_none_any_more_has_to_go(observed: Callable[[str, str], Observation]) -> None:
    ours, theirs = observed(LEAKS, OURS), observed(LEAKS, THEIRS)
    stale = verdict(ours, theirs, (Accepted(LEAKS, (OURS,), ("answer to slow",), "because"),))
    assert "the accepted difference in 'answer to slow' is none any more" in stale.complaints()[0]


@pytest.mark.parametrize("entry", ACCEPTED, ids=lambda entry: entry.scenario)
def test_what_is_accepted_names_what_there_is(entry: Accepted) -> None:
    assert entry.scenario in BY_NAME
    assert set(entry.servers) <= set(COMPARED_WITH)
    assert entry.facts
    assert len(entry.reason) > 40


# --- for real -------------------------------------------------------------------------------------------------


@pytest.fixture
def sabotaged(on: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], Observation]:
    """A run of a scenario on a server whose application breaks it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def observe(scenario: str, server: str, factory: str) -> Observation:
        return on.run(case(scenario), server, tmp_path / "run", app=f"{sabotage.__name__}:{factory}")

    return observe


@pytest.mark.parametrize(
    ("scenario", "factory", "fact"),
    [
        (LEAKS, "sync_with_header", "answer to slow"),
        (COMMITS, "sync_losing_rows", "database: orders"),
        (LEAKS, "sync_skipping_a_phase", "transcript of worker 1"),
        (LEAKS, "sync_connecting_while_disposing", "database: sessions opened while disposing"),
    ],
)
def test_a_sabotaged_process_is_caught(
    observed: Callable[[str, str], Observation],
    sabotaged: Callable[[str, str, str], Observation],
    scenario: str,
    factory: str,
    fact: str,
) -> None:
    ours = sabotaged(scenario, OURS, factory)
    assert ours.trouble == ""
    assert fact in [each.fact for each in differences(ours, observed(scenario, THEIRS), ())]


# A scenario that has something to do in each step.
NEEDS = {
    "announce": "announce-period",
    "drain": "slow-request",
    "cancel": "longer-than-the-drain-timeout",
    "reclaim": "leak-unreturned",
    "dispose": "idle",
    "stop": "late-crowd",
    "close": "idle",
}


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("step", sabotage.STEPS)
def test_a_step_that_is_deleted_from_a_runner_is_missed(
    sabotaged: Callable[[str, str, str], Observation], step: str, colour: str
) -> None:
    server = OURS if colour == "sync" else THEIRS
    assert failures(sabotaged(NEEDS[step], server, f"{colour}_without_{step}"))


# --- the command ----------------------------------------------------------------------------------------------


def test_a_server_brings_its_partner_along() -> None:
    cases = plan(ParityOptions(scenarios=("idle",), servers=("gunicorn-2-workers",)))
    assert [(each.database, each.servers) for each in cases] == [
        ("postgresql", ("gunicorn-2-workers", "uvicorn-2-workers"))
    ]
    everything = plan(ParityOptions())
    assert {server for each in everything for server in each.servers} == set(BACKENDS)
    assert [each.scenario.name for each in everything if each.database == POSTGRESQL] == list(BY_NAME)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (ParityOptions(scenarios=("idel",)), "there is no scenario idel, did you mean idle?"),
        (ParityOptions(servers=("apache",)), "there is no server apache"),
        (ParityOptions(scenarios=("sigint",), database="sqlite"), "there is no such combination"),
    ],
)
def test_what_there_is_not_is_said(options: ParityOptions, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said.replace("?", r"\?")):
        plan(options)


def test_the_catalogue_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["parity", "--list"]) == 0
    output = capsys.readouterr().out
    assert all(f"{name}: {scenario.shows}" in output for name, scenario in BY_NAME.items())


def test_the_report_says_the_same_every_time(observed: Callable[[str, str], Observation]) -> None:
    def report(ours: Observation) -> str:
        return markdown([verdict(ours, observed(LEAKS, THEIRS))])

    first, second = observed(LEAKS, OURS), observed(LEAKS, OURS)
    second.after_last_act += 0.1
    assert report(first) == report(second)
    assert f"| {LEAKS} |" in report(first)
    assert str(ROOT) not in report(first)


def test_facts_hold_no_measurement(observed: Callable[[str, str], Observation]) -> None:
    def all_keys(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield key
                yield from all_keys(inner)

    text = "\n".join(line for lines in facts(observed(LEAKS, OURS)).values() for line in lines)
    assert not [word for word in ('"t"', '"seconds"', '"age"', '"pid"', str(ROOT)) if word in text]
