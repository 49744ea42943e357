"""The shutdown sequence, driven by hand: every phase once and in order, deadlines that add up, an honest exit code."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooldrain.exit_codes import ExitCode, worst_exit_code
from pooldrain.ledger import Holding
from pooldrain.phases import Phase
from pooldrain.policy import ShutdownPolicy
from pooldrain.shutdown import (
    Announce,
    AnyStep,
    Cancel,
    Close,
    ConnectionCounts,
    CutRequest,
    Dispose,
    Done,
    Drain,
    Failed,
    Outcome,
    PoolCounts,
    Reclaim,
    RequestCounts,
    Retired,
    ShutdownReport,
    Stop,
    Tally,
    Teardown,
    shutdown_sequence,
)

POLICY = ShutdownPolicy(announce_period=2, drain_timeout=30, cancel_timeout=5, teardown_timeout=3, linger=0.5)
STEPS = [Announce, Drain, Cancel, Teardown, Reclaim, Dispose, Stop]
PHASES = [
    Phase.ANNOUNCING,
    Phase.DRAINING,
    Phase.CANCELLING,
    Phase.TEARDOWN,
    Phase.RECLAIMING,
    Phase.DISPOSING,
    Phase.STOPPING,
]
CLEAN = Tally(
    requests=RequestCounts(in_flight_at_signal=3, finished=120, refused=12),
    cut_requests=(),
    leaks={"collected": 0, "unreturned": 0, "overdue": 0, "threshold": 0},
    opened=10,
    closed=10,
    outstanding=(),
    reclaimed=0,
    leaked=False,
    fail_on_leak=False,
    signals=1,
)
LEAK = Holding(
    "GET /db-test-leak", "r7", 1.5, "app.py:7 in leak", ("app.py:9 in view",), "SELECT 1", True, "unreturned"
)
WORK = Holding("nightly", None, 40.0, "jobs.py:3 in nightly", (), "UPDATE orders", True, None, "shop")

Answer = Callable[[AnyStep], Done]


def shut_down(
    answer: Answer, tally: Tally = CLEAN, policy: ShutdownPolicy = POLICY, now: float = 100.0
) -> tuple[ShutdownReport, list[AnyStep]]:
    """Play the runner: answer each step; the report and the steps that were asked for."""
    sequence = shutdown_sequence(policy, "SIGTERM", now)
    steps: list[AnyStep] = [next(sequence)]
    while True:
        step = steps[-1]
        try:
            steps.append(sequence.send(tally if isinstance(step, Close) else answer(step)))
        except StopIteration as stop:
            report: ShutdownReport = stop.value
            return report, steps


def each_takes(seconds: float, **special: Done) -> Answer:
    """Each step ends `seconds` after the one before it, in the way that `special` names for it."""
    clock = itertools.count(1)

    def answer(step: AnyStep) -> Done:
        now = 100.0 + seconds * next(clock)
        return replace(special.get(type(step).__name__.lower(), Done(0.0)), now=now)

    return answer


def step_of(steps: Iterable[AnyStep], kind: type[Any]) -> Any:
    (step,) = [step for step in steps if isinstance(step, kind)]
    return step


# -- the order, and the deadlines


def test_a_shutdown_goes_through_every_phase_in_order_and_ends_well() -> None:
    report, steps = shut_down(each_takes(0.25))
    assert [type(step) for step in steps] == [*STEPS, Close]
    assert [step.phase for step in steps] == [*PHASES, Phase.CLOSED]
    assert [phase for phase, _ in report.phases] == PHASES
    assert (report.outcome, report.exit_code, report.signal) == (Outcome.DRAINED, 0, "SIGTERM")


def test_each_deadline_counts_from_the_end_of_the_step_before() -> None:
    _, steps = shut_down(each_takes(1.0))
    assert [step.deadline for step in steps] == [
        102.0,  # announce: the signal + 2
        131.0,  # drain: 101 + 30
        107.0,  # cancel: 102 + 5
        106.0,  # teardown: 103 + 3
        114.0,  # reclaim: 104 + 10
        114.0,  # dispose: shares it
        106.5,  # stop: 106 + 0.5
        107.0,
    ]
    assert step_of(steps, Stop).linger == 0.5


def test_no_deadline_lies_beyond_the_grace_period() -> None:
    deadline = 100.0

    def as_late_as_allowed(step: AnyStep) -> Done:
        nonlocal deadline
        deadline = max(deadline, step.deadline)
        return Done(deadline, timed_out=True)

    report, _ = shut_down(as_late_as_allowed)
    assert report.seconds == POLICY.needed == POLICY.ladder.grace_period


def test_the_phases_last_as_long_as_their_steps_took_and_sum_up() -> None:
    report, _ = shut_down(each_takes(0.25))
    assert [seconds for _, seconds in report.phases] == [0.25] * 7
    assert report.seconds == 1.75


def test_a_step_cannot_be_changed_by_its_runner() -> None:
    step: Any = next(shutdown_sequence(POLICY, "SIGINT", 0.0))
    with pytest.raises(FrozenInstanceError):
        step.deadline = 1e9


# -- the drain, and what hurries it


def test_after_a_complete_drain_there_is_nothing_to_cancel() -> None:
    _, steps = shut_down(each_takes(1.0))
    assert step_of(steps, Cancel).needed is False


@pytest.mark.parametrize(
    "result",
    [Done(0, timed_out=True), Done(0, hurried=True), Failed(0, error="OSError")],
    ids=["timed out", "hurried", "failed"],
)
def test_what_an_incomplete_drain_left_has_to_be_cancelled(result: Done) -> None:
    _, steps = shut_down(each_takes(1.0, drain=result))
    assert step_of(steps, Cancel).needed is True


def test_a_second_signal_in_the_announcement_skips_the_drains_waiting() -> None:
    report, steps = shut_down(each_takes(1.0, announce=Done(0, hurried=True)))
    assert step_of(steps, Drain).deadline == 101.0, "the drain is over when it begins"
    assert [type(step) for step in steps] == [*STEPS, Close], "and is entered all the same"
    assert report.hurried
    assert report.exit_code == 0, "nothing was in flight: a hurried shutdown can be a clean one"


def test_an_announcement_that_timed_out_is_over_as_planned() -> None:
    _, steps = shut_down(each_takes(1.0, announce=Done(0, timed_out=True)))
    assert step_of(steps, Drain).deadline == 131.0
    assert step_of(steps, Cancel).needed is False


@pytest.mark.parametrize(("timed_out", "deadline"), [(False, 131.0), (True, 101.0)])
def test_a_worker_whose_clients_had_all_of_the_drains_time_gets_no_more_of_it(timed_out: bool, deadline: float) -> None:
    _, steps = shut_down(each_takes(1.0, announce=Retired(0, timed_out=timed_out)))
    assert step_of(steps, Drain).deadline == deadline


def test_a_second_signal_in_the_drain_is_in_the_report() -> None:
    report, _ = shut_down(each_takes(1.0, drain=Done(0, hurried=True)), replace(CLEAN, signals=2))
    assert (report.hurried, report.signals) == (True, 2)


def test_without_a_second_signal_nothing_is_hurried() -> None:
    report, _ = shut_down(each_takes(1.0, drain=Done(0, timed_out=True)))
    assert not report.hurried


# -- failures, and the exit code


@pytest.mark.parametrize("broken", STEPS, ids=lambda step: step.__name__)
def test_a_step_that_fails_is_named_and_the_rest_is_done_all_the_same(broken: type[Any]) -> None:
    failure = Failed(0, error="OSError: gone")
    report, steps = shut_down(each_takes(1.0, **{broken.__name__.lower(): failure}))
    assert [type(step) for step in steps] == [*STEPS, Close]
    assert report.errors == (f"{broken.phase.value}: OSError: gone",)
    assert (report.outcome, report.exit_code) == (Outcome.DISPOSE_FAILED, 4)


def test_a_dispose_that_timed_out_is_a_failure_even_if_every_connection_was_seen_to_close() -> None:
    report, _ = shut_down(each_takes(1.0, dispose=Done(0, timed_out=True)))
    assert (report.outcome, report.exit_code) == (Outcome.DISPOSE_FAILED, 4)


@pytest.mark.parametrize("step", ["announce", "drain", "cancel", "teardown", "reclaim", "stop"])
def test_any_other_step_may_time_out_if_nothing_comes_of_it(step: str) -> None:
    report, _ = shut_down(each_takes(1.0, **{step: Done(0, timed_out=True)}))
    assert (report.outcome, report.exit_code) == (Outcome.DRAINED, 0)


def test_a_connection_that_was_not_seen_to_close_is_abandoned() -> None:
    tally = replace(CLEAN, opened=12, closed=11, outstanding=(LEAK, LEAK), reclaimed=1)
    report, _ = shut_down(each_takes(1.0), tally)
    assert report.connections == ConnectionCounts(opened=12, closed=10, reclaimed=1, abandoned=1)
    assert (report.outcome, report.exit_code) == (Outcome.DISPOSE_FAILED, 4)


CUT = replace(
    CLEAN,
    requests=RequestCounts(3, 119, 12, 1),
    cut_requests=(CutRequest("r9", "GET /work", 35.0, None, "app.py:7 in work", "SELECT 1"),),
)


def test_a_cut_request_is_told_by_the_exit_code_and_by_name() -> None:
    report, _ = shut_down(each_takes(1.0, drain=Done(0, timed_out=True)), CUT)
    assert (report.outcome, report.exit_code, report.requests.seen) == (Outcome.CUT, 3, 132)
    assert [cut.route for cut in report.cut_requests] == ["GET /work"]


def test_work_outside_requests_that_was_cut_is_told_by_the_exit_code_too() -> None:
    report, _ = shut_down(each_takes(1.0, drain=Done(0, timed_out=True)), replace(CLEAN, cut_work=(WORK,)))
    assert (report.outcome, report.exit_code, report.requests.cut) == (Outcome.CUT, 3, 0)


@pytest.mark.parametrize(
    ("leaked", "fail_on_leak", "code"), [(True, True, 5), (True, False, 0), (False, True, 0), (False, False, 0)]
)
def test_a_leak_is_reported_and_punished_only_where_that_was_asked_for(
    leaked: bool, fail_on_leak: bool, code: int
) -> None:
    report, _ = shut_down(each_takes(1.0), replace(CLEAN, leaked=leaked, fail_on_leak=fail_on_leak))
    assert report.exit_code == code
    assert report.outcome is (Outcome.LEAKED if code else Outcome.DRAINED)


@pytest.mark.parametrize(("rule", "code"), [("overdue", 5), ("unreturned", 5), (None, 0)])
def test_what_is_still_out_at_the_end_is_a_leak_if_any_rule_says_so_and_not_if_it_is_merely_busy(
    rule: str | None, code: int
) -> None:
    tally = replace(CLEAN, outstanding=(replace(LEAK, rule=rule),), reclaimed=1, fail_on_leak=True)
    report, _ = shut_down(each_takes(1.0), tally)
    assert report.exit_code == code


def test_the_worst_of_several_misfortunes_makes_the_exit_code() -> None:
    leaked_and_cut = replace(CUT, leaked=True, fail_on_leak=True)
    assert shut_down(each_takes(1.0), leaked_and_cut)[0].exit_code == 3
    assert shut_down(each_takes(1.0, dispose=Done(0, timed_out=True)), leaked_and_cut)[0].exit_code == 4


# -- the report


def test_the_report_has_the_shape_that_is_documented() -> None:
    leaks = {**CLEAN.leaks, "unreturned": 1}
    pools = (PoolCounts("shop", 15, 15, {"unreturned": 1}),)
    tally = replace(CUT, leaks=leaks, opened=15, closed=15, outstanding=(LEAK,), reclaimed=1)
    tally = replace(tally, cut_work=(WORK,), pools=pools)
    report, _ = shut_down(each_takes(0.25, drain=Done(0, timed_out=True)), tally)
    assert report.as_dict() == {
        "outcome": "cut",
        "exit_code": 3,
        "signal": "SIGTERM",
        "signals": 1,
        "hurried": False,
        "seconds": 1.75,
        "phases": [{"phase": phase.value, "seconds": 0.25} for phase in PHASES],
        "requests": {"in_flight_at_signal": 3, "finished": 119, "refused": 12, "cut": 1, "seen": 132},
        "cut_requests": [
            {
                "request_id": "r9",
                "route": "GET /work",
                "age": 35.0,
                "status": None,
                "call_site": "app.py:7 in work",
                "statement": "SELECT 1",
            }
        ],
        "cut_work": [asdict(WORK)],
        "outstanding": [
            {
                "holder": "GET /db-test-leak",
                "request_id": "r7",
                "age": 1.5,
                "call_site": "app.py:7 in leak",
                "callers": ("app.py:9 in view",),
                "statement": "SELECT 1",
                "in_transaction": True,
                "rule": "unreturned",
                "pool": "main",
            }
        ],
        "leaks": {"collected": 0, "unreturned": 1, "overdue": 0, "threshold": 0},
        "connections": {"opened": 15, "closed": 14, "reclaimed": 1, "abandoned": 0},
        "pools": [{"pool": "shop", "opened": 15, "closed": 15, "leaks": {"unreturned": 1}}],
        "errors": [],
    }


def test_the_report_is_plain_data() -> None:
    report, _ = shut_down(each_takes(1 / 3), replace(CLEAN, outstanding=(LEAK,), reclaimed=1))
    written = json.loads(json.dumps(report.as_dict()))
    assert written["seconds"] == 2.333333
    assert written["phases"][0] == {"phase": "ANNOUNCING", "seconds": 0.333333}


def test_a_reclaiming_that_fails_half_way_still_tells_what_was_out_and_what_was_closed() -> None:
    failed = Failed(0, error="close failed")
    tally = replace(CLEAN, opened=12, closed=11, outstanding=(LEAK, LEAK), reclaimed=1)
    report, _ = shut_down(each_takes(1.0, reclaim=failed), tally)
    assert report.outstanding == (LEAK, LEAK)
    assert report.connections == ConnectionCounts(opened=12, closed=10, reclaimed=1, abandoned=1)


# -- exit codes


def test_the_exit_codes_are_the_documented_ones() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "DRAINED": 0,
        "NOT_STARTED": 1,
        "BAD_CONFIGURATION": 2,
        "CUT": 3,
        "DISPOSE_FAILED": 4,
        "LEAKED": 5,
        "DOES_NOT_FIT": 6,
    }


@pytest.mark.parametrize(
    ("codes", "worst"),
    [([], 0), ([0, 0], 0), ([0, 5], 5), ([5, 3], 3), ([3, 4], 4), ([4, 2], 2), ([2, 1], 1), ([1, 143], 143)],
)
def test_a_master_exits_with_the_worst_of_its_workers(codes: list[int], worst: int) -> None:
    assert worst_exit_code(codes) == worst_exit_code(reversed(codes)) == worst


@given(st.lists(st.integers(-64, 255), min_size=1))
def test_the_worst_exit_code_is_one_of_them_and_zero_only_if_all_are(codes: list[int]) -> None:
    worst = worst_exit_code(codes)
    assert worst in codes
    assert (worst == 0) == (set(codes) == {0})


# -- whatever the steps answer


def check(report: ShutdownReport, steps: list[AnyStep], tally: Tally) -> None:
    """What holds for every shutdown."""
    assert [type(step) for step in steps] == [*STEPS, Close]
    assert [phase for phase, _ in report.phases] == PHASES
    assert report.exit_code == ExitCode[report.outcome.name]
    assert sum(seconds for _, seconds in report.phases) == report.seconds
    counts = report.connections
    assert counts.opened == counts.closed + counts.reclaimed + counts.abandoned == tally.opened
    if report.exit_code == 0:
        assert (report.errors, report.cut_requests, counts.abandoned) == ((), (), 0)
    json.dumps(report.as_dict())


def test_every_combination_of_results_ends_with_a_report() -> None:
    kinds = {
        "plain": Done(0),
        "timed out": Done(0, timed_out=True),
        "hurried": Done(0, hurried=True),
        "failed": Failed(0, error="x"),
    }
    for combination in itertools.product(kinds, repeat=len(STEPS)):
        names = (step.__name__.lower() for step in STEPS)
        answer = each_takes(1.0, **{name: kinds[kind] for name, kind in zip(names, combination, strict=True)})
        report, steps = shut_down(answer)
        check(report, steps, CLEAN)
        announce, drain, *_, dispose, _ = combination
        assert step_of(steps, Cancel).needed is (drain != "plain")
        assert step_of(steps, Drain).deadline == (101.0 if announce == "hurried" else 131.0)
        assert len(report.errors) == combination.count("failed")
        assert report.hurried is ("hurried" in combination)
        assert report.exit_code == (4 if "failed" in combination or dispose == "timed out" else 0)


instants = st.integers(0, 10**6).map(lambda quarters: quarters / 4)  # floats that add up exactly
results = st.one_of(
    st.builds(Done, instants, st.booleans(), st.booleans()),
    st.builds(Failed, instants, st.booleans(), st.booleans(), error=st.text()),
)


@given(
    st.lists(results, min_size=7, max_size=7),
    st.integers(0, 3),
    st.tuples(st.integers(3, 9), st.integers(0, 9), st.integers(0, 3)),
    st.booleans(),
    st.booleans(),
)
def test_whatever_the_steps_answer_the_report_is_consistent(
    answers: list[Done], cut: int, connections: tuple[int, int, int], leaked: bool, fail_on_leak: bool
) -> None:
    closed, left, reclaimed = connections
    tally = replace(
        CLEAN,
        requests=RequestCounts(cut=cut),
        cut_requests=tuple(CutRequest("r", "GET /", 0.0, None) for _ in range(cut)),
        opened=closed + left,
        closed=closed,
        outstanding=(LEAK,) * reclaimed,
        reclaimed=reclaimed,
        leaked=leaked,
        fail_on_leak=fail_on_leak,
    )
    left_to_answer = iter(answers)
    report, steps = shut_down(lambda _: next(left_to_answer), tally, now=0.0)
    check(report, steps, tally)
    if left:
        assert report.outcome is Outcome.DISPOSE_FAILED
