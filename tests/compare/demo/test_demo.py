"""The demo: what it finds wrong in observations made up for it, and the whole of it in a short form."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pooldrain_compare.cli import run
from pooldrain_compare.demo import expectations, tutorial
from pooldrain_compare.demo.observe import DemoRun, Orders
from pooldrain_compare.demo.verdict import reach_verdict
from pooldrain_compare.harness.load import Exchange, LoadResult, Mode, Outcome, Refusal
from pooldrain_compare.harness.processes import Ended, ServerProcess, ServerProcessError, group_runs, runs
from pooldrain_compare.harness.servers import GUNICORN, SERVERS, UVICORN
from pooldrain_compare.harness.witness import Left

SIGNAL_AT = 100.0
BOUND = 20.0


def exchange(outcome: Outcome, at: float, status: int | None = None, **fields: Any) -> Exchange:
    sent = None if outcome is Outcome.NOT_SENT else at - 0.1
    values: dict[str, Any] = {
        "mode": Mode.NEW,
        "route": "GET /",
        "reason": "",
        "order": None,
        "reused": False,
        **fields,
    }
    return Exchange(outcome=outcome, sent_at=sent, ended_at=at, status=status, **values)


def load(*more: Exchange) -> LoadResult:
    result = LoadResult(clients=2)
    result.exchanges = [
        exchange(Outcome.ANSWERED, 99.0, 200),
        exchange(Outcome.ANSWERED, 100.05, 201, order="a"),
        exchange(Outcome.REFUSED, 100.2, 503),
        exchange(Outcome.NOT_SENT, 100.3, reason="refused"),
        *more,
    ]
    result.refusals = {Refusal((("connection", "close"), ("retry-after", "1")), b"no")}
    return result


def report(**changes: Any) -> dict[str, Any]:
    leak = {
        "holder": "GET /db-test-leak",
        "rule": "unreturned",
        "call_site": "app.py:1 in f",
        "statement": "SELECT 1",
        "in_transaction": True,
    }
    return {
        "outcome": "drained",
        "signal": "SIGTERM",
        "signals": 1,
        "hurried": False,
        "phases": [{"phase": phase, "seconds": 0.0} for phase in expectations.PHASES],
        "requests": {"in_flight_at_signal": 1, "finished": 2 + tutorial.COUNTED_REQUESTS, "refused": 1, "cut": 0},
        "outstanding": [leak] * 5,
        "leaks": {"unreturned": 5},
        "connections": {"opened": 10, "closed": 5, "reclaimed": 5, "abandoned": 0},
        "errors": [],
        **changes,
    }


def observation(**changes: Any) -> DemoRun:
    made = DemoRun(
        backend=GUNICORN,
        pages=[tutorial.Page(path, 200, (), body, body) for path, _, body in tutorial.STEPS],
        load=load(),
        signal_at=SIGNAL_AT,
        in_flight_seen=1,
        ended=Ended(0, 100.4, stragglers=False),
        left=Left(0, 0, 0.0),
        orders=Orders.compare(load(), Counter({"a": 1})),
        report=report(),
        transcript=[],
        log=[],
        stray=[],
    )
    return replace(made, **changes)


def test_a_good_observation_has_no_failure() -> None:
    assert expectations.failures(observation()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pages": [tutorial.Page("/", 200, (), "other", "printed")]}, "not what the tutorial prints"),
        ({"report": {}}, "no report"),
        ({"ended": Ended(1, 100.4, stragglers=False)}, "exit code 1"),
        ({"ended": Ended(-9, 100.4, stragglers=False)}, "exit code -9"),
        ({"ended": Ended(0, 100.4, stragglers=True)}, "outlived"),
        ({"report": report(outcome="cut")}, "outcome cut"),
        ({"report": report(phases=[])}, "phases ()"),
        ({"load": load(exchange(Outcome.LOST, 100.1, reason="reset"))}, "1 requests lost: GET / new-connection reset"),
        ({"load": load(exchange(Outcome.ANSWERED, 100.1, 500))}, "status {500: 1}"),
        ({"load": load(exchange(Outcome.NOT_SENT, 100.1, reason="reset"))}, "dropped unread"),
        ({"load": load(exchange(Outcome.REFUSED, 99.0, 503))}, "not answered before the signal"),
        ({"load": LoadResult()}, "nothing was refused"),
        ({"report": report(requests={"in_flight_at_signal": 1, "cut": 1})}, "1 requests cut"),
        ({"report": report(requests={"in_flight_at_signal": 0, "cut": 0})}, "nothing was in flight"),
        ({"report": report(requests={"in_flight_at_signal": 7, "cut": 0})}, "of 7 requests in flight"),
        ({"report": report(requests={"finished": 1})}, "the backend finished 1 requests"),
        ({"report": report(requests={"refused": 2})}, "the backend refused 2 requests, the clients saw 1"),
        ({"orders": Orders.compare(load(), Counter())}, "acknowledged orders missing: a"),
        ({"orders": Orders.compare(load(), Counter({"a": 2}))}, "stored more than once: a"),
        ({"orders": Orders.compare(load(), Counter({"a": 1, "b": 1}))}, "stored although refused: b"),
        ({"orders": Orders.compare(LoadResult(), Counter())}, "no order was acknowledged"),
        ({"report": report(outstanding=[])}, "leaks {}"),
        ({"left": Left(3, 2, 1.0)}, "2 sessions left"),
        ({"report": report(connections={"opened": 10, "closed": 9, "reclaimed": 0})}, "do not add up"),
        ({"stray": ["Traceback (most recent call last):"]}, "output beside the log: Traceback"),
        ({"log": [{"level": "error", "event": "log", "message": "oops"}]}, "errors in the log: oops"),
        ({"log": [{"level": "warning", "event": "log", "message": "hm"}]}, "warnings in the log: hm"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], said: str) -> None:
    assert any(said in failure for failure in expectations.failures(observation(**changes))), said


def test_a_503_has_to_close_and_to_say_when_to_come_back() -> None:
    result = load()
    result.refusals = {Refusal((("connection", "close"),), b"no")}
    assert any("Retry-After" in failure for failure in expectations.failures(observation(load=result)))


def test_what_is_lost_may_be_stored_or_not_and_what_failed_too() -> None:
    result = load(
        exchange(Outcome.LOST, 100.1, order="lost"),
        exchange(Outcome.ANSWERED, 100.1, 500, order="failed"),
        exchange(Outcome.REFUSED, 100.1, 503, order="refused"),
    )
    orders = Orders.compare(result, Counter(["a", "lost", "failed", "refused"]))
    assert orders.unwanted == ("refused",)
    assert (orders.acknowledged, orders.stored) == (1, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"ended": Ended(3, 100.4, stragglers=False)},
        {"report": report(phases=[{"phase": "DRAINING", "seconds": 0.0}])},
        {"report": report(leaks={"unreturned": 4})},
        {"report": report(connections={"opened": 10, "closed": 10, "reclaimed": 0})},
        {"report": {**report(), "extra": 1}},
        {"load": load(exchange(Outcome.LOST, 100.1))},
        {"left": Left(1, 1, 3.0)},
        {"log": [{"level": "info", "event": "signal"}, {"level": "info", "event": "drain_started"}]},
        {"pages": []},
    ],
)
def test_a_difference_between_two_backends_is_found(changes: dict[str, Any]) -> None:
    one, other = observation(), observation(backend=UVICORN, **changes)
    assert not expectations.differences([one, observation(backend=UVICORN)])
    assert expectations.differences([one, other])
    result = reach_verdict([one, other], {})
    assert not result.good
    assert any(line.startswith("differs: ") for line in result.complaints)


def test_the_headers_of_a_refusal_are_compared() -> None:
    result = load()
    result.refusals = {Refusal((("connection", "close"), ("retry-after", "2")), b"no")}
    (difference,) = expectations.differences([observation(), observation(backend=UVICORN, load=result)])
    assert difference.fact == "answer to a refused request"


def test_numbers_that_depend_on_the_load_are_no_difference() -> None:
    other = observation(
        backend=UVICORN,
        load=load(exchange(Outcome.ANSWERED, 99.5, 200)),
        report=report(requests={"in_flight_at_signal": 9, "finished": 99, "refused": 7, "cut": 0}),
        ended=Ended(0, 107.0, stragglers=False),
    )
    assert expectations.differences([observation(), other]) == []


def test_the_verdict_names_the_servers() -> None:
    good = reach_verdict([observation(), observation(backend=UVICORN)], {})
    assert good.good
    assert good.sentence.startswith("identical: gunicorn and uvicorn")
    broken = reach_verdict([observation()], {"uvicorn": "did not start"})
    assert not broken.good
    assert "uvicorn failed" in broken.sentence


def test_the_demo_finds_all_servers_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the embedded PostgreSQL keeps its data under the current directory
    status = run(["demo", "--clients", "12", "--seconds", "0.5", "--keep", str(tmp_path)])
    printed = capsys.readouterr()
    assert status == 0, f"{printed.out}\n{printed.err}"
    assert "identical: gunicorn, waitress and uvicorn" in printed.out.splitlines()[-1]
    for name in (server.name for server in SERVERS):
        result = json.loads((tmp_path / f"{name}.result.json").read_text("utf-8"))
        assert result["failures"] == []
        assert result["requests"]["lost"] == 0
        assert result["sessions_left"]["finally"] == 0
        assert result["exit_code"] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["demo", "--clients", "1"], "argument --clients: must be 2 or more, not 1"),
        (["demo", "--seconds", "soon"], "argument --seconds: must be a number of seconds, not 'soon'"),
        (["demo", "--seconds", "nan"], "argument --seconds: must be more than 0"),
        (["demo", "--server", "hypercorn"], "argument --server: invalid choice: 'hypercorn'"),
        (["demo", "--database-url", "sqlite:///x.db"], "must name a PostgreSQL"),
        (["demo", "--database-url", "mongodb://x"], "unknown database"),
        (["demo", "--colour"], "unrecognized arguments: --colour"),
        (["bench", "nothing"], "invalid choice: 'nothing'"),
        (["bench", "shutdown", "--runs", "0"], "must be 1 or more"),
    ],
)
def test_bad_options_are_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err.splitlines()[-1]
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_a_database_out_of_reach_is_one_line_without_the_password(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--database-url", "postgresql://me:secret@127.0.0.1:1/x"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("pooldrain-compare: cannot connect to postgresql://me:***@127.0.0.1:1/x")
    assert len(printed.err.splitlines()) == 1
    assert "secret" not in printed.err


CHILD = """
import os, signal, sys, time
print("started", flush=True)
if os.fork() == 0:
    signal.pause()
signal.pause()
"""


def test_a_process_group_is_gone_after_its_context(tmp_path: Path) -> None:
    process = ServerProcess(
        [sys.executable, "-c", CHILD], log=tmp_path / "log", address=("127.0.0.1", 1), start_timeout=0.5
    )
    with pytest.raises(ServerProcessError, match=r"did not start within 0\.5 s"), process:
        pass
    assert process.ended is not None
    assert process.ended.code == -signal.SIGKILL
    assert not group_runs(process.pid)


def test_a_process_that_ends_instead_of_starting_is_told_with_its_log(tmp_path: Path) -> None:
    process = ServerProcess([sys.executable, "-c", "print('no luck'); raise SystemExit(7)"], log=tmp_path / "log")
    with pytest.raises(ServerProcessError, match=r"ended with 7 instead of starting(.|\n)*no luck"), process:
        pass


LISTENING = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print('{"event": "listening", "host": "127.0.0.1", "port": 1}', flush=True)
signal.sigwait([signal.SIGUSR1])
"""


def test_a_process_whose_log_cannot_be_written_is_not_started(tmp_path: Path) -> None:
    process = ServerProcess([sys.executable, "-c", LISTENING], log=tmp_path / "nowhere" / "log")
    with pytest.raises(FileNotFoundError), process:
        pass
    assert process._popen is None


def test_a_process_that_tells_its_address_is_not_asked_there_however_late_we_look(tmp_path: Path) -> None:
    class LookedAtLate(ServerProcess):
        def _await_ready(self) -> None:
            self._listening.wait(BOUND)
            super()._await_ready()

    with LookedAtLate([sys.executable, "-c", LISTENING], log=tmp_path / "log", start_timeout=BOUND) as process:
        assert process.address == ("127.0.0.1", 1)


def test_the_end_of_a_process_is_known_at_once(tmp_path: Path) -> None:
    with ServerProcess([sys.executable, "-c", LISTENING], log=tmp_path / "log") as process:
        assert process.address == ("127.0.0.1", 1)
        at = process.signal(signal.SIGUSR1)
        ended = process.wait(BOUND)
    assert ended.code == 0
    assert at <= ended.at <= time.monotonic()
    assert not ended.stragglers


def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "pooldrain_compare", "demo", "--seconds", "60", "--keep", str(tmp_path)]
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None
        lines = []
        try:
            for line in demo.stderr:
                lines.append(line)
                if "under load" in line:
                    break
            started = (tmp_path / "gunicorn.log").read_text("utf-8")
            demo.send_signal(signal.SIGTERM)
            _, rest = demo.communicate(timeout=BOUND)
        finally:
            demo.kill()
    assert demo.returncode == 130, "".join(lines) + rest
    assert rest.splitlines()[-1] == "pooldrain-compare: interrupted"
    assert "Traceback" not in rest
    pids = [json.loads(line)["pid"] for line in started.splitlines() if '"listening"' in line]
    assert pids
    for pid in pids:
        assert not runs(pid)
