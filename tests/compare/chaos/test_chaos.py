"""Chaos, in short: a few trials of one seed hold every invariant, and each invariant can be broken.

The long form is `make chaos TRIALS=500 SEED=1`.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from rich.console import Console

from pooldrain.problems import POOL_CLOSED, REFUSED
from pooldrain_compare.chaos import campaign
from pooldrain_compare.chaos.invariants import AT_ONCE, INVARIANTS, MARGIN, broken_invariants
from pooldrain_compare.chaos.plan import FAULT_NAMES, NO_FAULT, Plan, draw, workload
from pooldrain_compare.chaos.rude import MANNERS, VISITORS
from pooldrain_compare.chaos.trial import Evidence, run
from pooldrain_compare.cli import run as run_command
from pooldrain_compare.harness.faults.private_server import PrivateServer, PrivateServers
from pooldrain_compare.harness.http import problem_detail
from pooldrain_compare.harness.load import Exchange, LoadResult, Mode, Outcome
from pooldrain_compare.harness.processes import Ended, send
from pooldrain_compare.harness.servers import BACKENDS
from tests.harness.waiting import eventually

SEED = 205  # its first trials have something of everything
TRIALS = 10


@pytest.fixture(scope="module")
def servers() -> Iterator[PrivateServers]:
    with PrivateServers() as running:
        yield running


# --- what is hurt may be gone ---------------------------------------------------------------------------------


def test_a_process_that_has_ended_is_not_there_to_be_signalled() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as process:
        assert process.wait(30) == 0
    assert not send(process.pid, signal.SIGKILL)
    assert not send(process.pid, signal.SIGKILL, group=True)
    assert send(os.getpid(), 0)


def test_a_session_that_has_ended_by_itself_is_not_killed_and_its_server_goes_on(servers: PrivateServers) -> None:
    with servers.borrow() as server:
        url = server.make_database()
        with psycopg.connect(server.superuser_url(url)) as connection:
            pid = connection.info.backend_pid
        eventually(lambda: not psutil.pid_exists(pid), "the session has ended")
        assert server.kill_backend(pid) is False
        assert server.ask("SELECT 1") == [(1,)]
        server.drop_database(url)


# --- trials ---------------------------------------------------------------------------------------------------


def test_no_invariant_is_broken_in_a_short_campaign(tmp_path: Path) -> None:
    told: list[int] = []
    result = campaign.run_campaign(
        SEED, range(1, TRIALS + 1), lambda verdict: told.append(verdict.plan.number), directory=tmp_path, jobs=2
    )
    assert not [(verdict.plan.title, verdict.broken) for verdict in result.broken]
    assert sorted(told) == list(range(1, TRIALS + 1))
    assert not list(tmp_path.iterdir()), "nothing is kept of good trials"


def test_a_broken_trial_tells_how_to_run_it_again_and_keeps_its_artefacts(
    servers: PrivateServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(INVARIANTS, "played", lambda _seen: iter(["planted"]))
    verdict = campaign.try_out(SEED, 2, servers, tmp_path, False)
    assert verdict.broken == ["played: planted"]
    kept = {path.name.partition(".")[0] for path in (tmp_path / "trial-2").iterdir()}
    assert {"plan", "verdict", verdict.plan.server} <= kept
    said = io.StringIO()
    console = Console(file=said, width=200)
    campaign.tell_broken(console, verdict, tmp_path)
    campaign.tell(console, campaign.Campaign(SEED, [verdict]))
    assert f"--seed {SEED} --only 2" in said.getvalue()
    assert "played: planted" in said.getvalue()
    assert f"BROKEN in 1 of 1 trials of seed {SEED}: 2" in said.getvalue()


def test_a_trial_over_which_the_harness_stumbles_counts_as_broken(
    servers: PrivateServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumbling(plan: Plan, server: PrivateServer, directory: Path) -> Evidence:
        raise RuntimeError("the harness")

    monkeypatch.setattr(campaign, "run", stumbling)
    assert campaign.try_out(SEED, 1, servers, tmp_path, False).broken == ["harness: RuntimeError: the harness"]


@pytest.mark.parametrize("options", [["--trials", "0"], ["--only", "x"], ["--nonsense"]])
def test_bad_options_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["chaos", *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("pooldrain-compare: ")


# --- plans ----------------------------------------------------------------------------------------------------


def test_a_seed_draws_the_same_trials_each_time() -> None:
    assert [draw(7, number) for number in range(20)] == [draw(7, number) for number in range(20)]
    assert draw(7, 1) != draw(8, 1)
    asked = [next(workload(draw(7, 1), "t")(client)) for client in range(5)]
    assert asked == [next(workload(draw(7, 1), "t")(client)) for client in range(5)]


def test_a_campaign_is_spread_over_everything() -> None:
    plans = [draw(1, number) for number in range(1, 501)]
    assert {(plan.server, plan.fault) for plan in plans} == {(s, f) for s in BACKENDS for f in FAULT_NAMES}
    assert {manner for plan in plans for manner in plan.rude} == {*MANNERS, *VISITORS}
    assert {len(plan.signals) for plan in plans} == {1, 2, 3}
    assert {(len(plan.noise), plan.early) for plan in plans} == {(0, True), (0, False), (1, False), (2, False)}
    begins = [plan.fault_at - plan.signals[0][0] for plan in plans if plan.fault != NO_FAULT]
    assert min(begins) < -0.2
    assert max(begins) > 0.5
    assert {(plan.fault_lasts is None, plan.early) for plan in plans} == {
        (lasts, early) for lasts in (True, False) for early in (True, False)
    }
    assert all(0.8 < plan.grace_period < 3.2 for plan in plans)


# --- each invariant can be broken -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(servers: PrivateServers, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """What was seen in a real trial without a fault."""
    plan = replace(
        draw(SEED, 1),
        server="waitress",
        early=False,
        hung=1,
        leaks=("/db-test-leak",),
        rude=("half-body", "leaver"),
        fault=NO_FAULT,
        signals=((0.4, "SIGTERM"),),
    )
    with servers.borrow() as server:
        seen = run(plan, server, tmp_path_factory.mktemp("good"))
    assert broken_invariants(seen) == []
    assert seen.rows
    assert any(exchange.detail == problem_detail(REFUSED.body) for exchange in seen.load.exchanges)
    return seen


def ended(seen: Evidence, **changed: Any) -> Evidence:
    assert seen.ended is not None
    return replace(seen, ended=replace(seen.ended, **changed))


def reported(seen: Evidence, **changed: Any) -> Evidence:
    """The report of its only process changed."""
    [only] = seen.report["workers"]
    return replace(seen, report={**seen.report, "workers": [{**only, **changed}]})


def exchanged(seen: Evidence, **given: Any) -> Evidence:
    """One exchange more."""
    blank: dict[str, Any] = {
        "mode": Mode.NEW,
        "route": "POST /orders",
        "sent_at": 0.0,
        "ended_at": 0.0,
        "status": None,
        "reason": "",
        "order": None,
        "reused": False,
        "identity": "planted",
    }
    exchange = Exchange(**{**blank, **given})
    return replace(seen, load=LoadResult([*seen.load.exchanges, exchange]))


def with_row(seen: Evidence, identity: str, item: str = "notebook", quantity: int = 1) -> Evidence:
    return replace(seen, rows=[*seen.rows, (identity, item, quantity)])


def acknowledged(seen: Evidence) -> str:
    return seen.load.orders(Outcome.ANSWERED)[0]


def late(seen: Evidence, seconds: float) -> float:
    return seen.signals[0][1] + seen.plan.grace_period + seconds


def told(seen: Evidence, body: bytes) -> Evidence:
    return exchanged(
        seen, outcome=Outcome.REFUSED, status=503, order="told", identity="told", detail=problem_detail(body)
    )


def third_signal(seen: Evidence, after: float) -> Evidence:
    at = seen.signals[0][1]
    signals = [("SIGTERM", at), ("SIGTERM", at + 0.1), ("SIGTERM", at + 0.2)]
    return replace(
        seen, signals=signals, ended=Ended(143, at + 0.2 + after, stragglers=False), report=None, transcript=[]
    )


PLANTED: dict[str, tuple[str, Callable[[Evidence], Evidence]]] = {
    "trouble": ("played", lambda seen: replace(seen, trouble="the service did not start")),
    "too late": ("bounded", lambda seen: ended(seen, at=late(seen, MARGIN + 0.01))),
    "never": ("bounded", lambda seen: replace(seen, ended=None)),
    "late after a third signal": ("bounded", lambda seen: third_signal(seen, AT_ONCE + 0.01)),
    "another exit code while it starts": (
        "exit code",
        lambda seen: ended(replace(seen, report=None, transcript=[]), code=3),
    ),
    "another exit code": ("exit code", lambda seen: ended(seen, code=4)),
    "another code in the report": ("exit code", lambda seen: replace(seen, report={**seen.report, "exit_code": 5})),
    "killed by a signal": ("exit code", lambda seen: ended(seen, code=-9)),
    "a code as if by a signal": ("exit code", lambda seen: ended(replace(seen, report=None), code=137)),
    "no report": ("exit code", lambda seen: replace(seen, report=None)),
    "an order is missing": (
        "acknowledged orders",
        lambda seen: replace(seen, rows=[row for row in seen.rows if row[0] != acknowledged(seen)]),
    ),
    "an order is there twice": ("acknowledged orders", lambda seen: with_row(seen, acknowledged(seen))),
    "an order is half-written": ("no other orders", lambda seen: with_row(told(seen, b"{}"), "told", "note")),
    "an order has another quantity": (
        "no other orders",
        lambda seen: with_row(told(seen, b"{}"), "told", "notebook", 2),
    ),
    "an unknown order": ("no other orders", lambda seen: with_row(seen, "nobody's")),
    "a refused order": ("no other orders", lambda seen: with_row(told(seen, REFUSED.body), "told")),
    "an order without a pool": ("no other orders", lambda seen: with_row(told(seen, POOL_CLOSED.before.body), "told")),
    "an order that was not sent": (
        "no other orders",
        lambda seen: with_row(exchanged(seen, outcome=Outcome.NOT_SENT, order="unsent", identity="unsent"), "unsent"),
    ),
    "a lost request": (
        "nothing lost",
        lambda seen: exchanged(seen, outcome=Outcome.LOST, reason="unanswered: closed"),
    ),
    "a session is left": ("no sessions", lambda seen: replace(seen, sessions_left=1)),
    "an orphan": ("no orphans", lambda seen: ended(seen, stragglers=True)),
    "a failed step": (
        "no defects",
        lambda seen: replace(seen, log=[*seen.log, '{"event": "step_failed", "message": "DRAINING: failed"}']),
    ),
    "a traceback": (
        "no defects",
        lambda seen: replace(seen, log=[*seen.log, '{"event": "log", "message": "oh", "traceback": "..."}']),
    ),
    "output beside the log": ("no defects", lambda seen: replace(seen, log=[*seen.log, "Segmentation fault"])),
    "an untrue story": ("transcript", lambda seen: replace(seen, transcript=seen.transcript[:-1])),
    "a number that falls": ("seen inside", lambda seen: replace(seen, seen_inside=["finished fell from 2 to 1"])),
    "an untrue report": ("transcript", lambda seen: reported(seen, signals=2)),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_violation_is_found(good: Evidence, planted: str) -> None:
    invariant, plant = PLANTED[planted]
    assert invariant in {broken.partition(":")[0] for broken in broken_invariants(plant(good))}


def test_every_invariant_can_be_broken() -> None:
    assert {invariant for invariant, _ in PLANTED.values()} == set(INVARIANTS)


def test_what_the_report_lists_as_cut_may_be_lost(good: Evidence) -> None:
    lost = exchanged(good, outcome=Outcome.LOST, reason="unanswered: closed")
    cut = {"request_id": "planted", "route": "POST /orders", "age": 1.0, "status": None}
    assert "nothing lost" not in str(
        broken_invariants(reported(lost, cut_requests=[*good.report["cut_requests"], cut]))
    )


def test_what_a_third_signal_ends_may_be_lost(good: Evidence) -> None:
    lost = exchanged(third_signal(good, 0.1), outcome=Outcome.LOST, reason="unanswered: closed")
    assert broken_invariants(lost) == []


def test_an_order_whose_client_was_told_nothing_may_be_there_or_not(good: Evidence) -> None:
    unsure = told(good, b'{"detail": "the database is out of reach"}')
    assert broken_invariants(unsure) == []
    assert broken_invariants(with_row(unsure, "told")) == []
