"""The fuzzer: it finds nothing in the two shells, finds whatever is planted, and never finds the same thing anew."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import pooldrain_async.middleware
import pooldrain_sync.middleware
import pooldrain_sync.runner
from pooldrain.answers import Answer
from pooldrain.policy import LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain.problems import REFUSED, problem
from pooldrain.shutdown import (
    Announce,
    AnyStep,
    Cancel,
    Dispose,
    Done,
    Drain,
    Reclaim,
    ShutdownReport,
    Stop,
    shutdown_sequence,
)
from pooldrain.sqla.pool import ClosableQueuePool
from pooldrain_async.pool import Pool as AsyncPool
from pooldrain_async.runner import Runner as AsyncRunner
from pooldrain_compare.cli import run
from pooldrain_compare.fuzz import campaign
from pooldrain_compare.fuzz.campaign import Divergence, Result, load, run_campaign, save
from pooldrain_compare.fuzz.fuzz_scenario import ACTIONS, OPERATIONS, Action, FuzzScenario
from pooldrain_compare.fuzz.strategies import scenarios
from pooldrain_compare.fuzz.trial import STAGES, differences, play
from pooldrain_compare.fuzz.turns import Condition, Thread, Turns
from pooldrain_sync.pool import Pool as SyncPool
from pooldrain_sync.runner import Runner as SyncRunner

SEED = 20240229
TRIALS = 300
ENOUGH = 400  # trials, to find what was planted

REGRESSIONS = Path(__file__).parent / "regressions"
EVERYTHING = FuzzScenario(
    pool=PoolPolicy(pool_size=2, max_overflow=1, min_idle=1),
    leaks=LeakPolicy(leak_threshold=2, leak_age=7.1),
    shutdown=ShutdownPolicy(announce_period=3.7, drain_timeout=5.9),
    driver="sqlite",
    engines=2,
    failing=("stop",),
    ending=("query", "write"),
    script=(
        Action("start", ("query", "hold")),
        Action("start", ("write",)),
        Action("start", ("keep", "collect")),
        Action("probe"),
        Action("advance", 31.7),
        Action("signal", "SIGINT"),
        Action("start", ("stream",)),
        Action("release", 1),
        Action("leave", 0),
        Action("return", 0),
        Action("advance", 4.3),
        Action("start", ("query",)),
        Action("signal", "SIGTERM"),
    ),
)


# -- nothing is found


def test_the_shells_do_not_diverge() -> None:
    result = run_campaign(TRIALS, SEED)
    assert result.divergence is None, "\n".join(result.divergence.differences)
    assert result.trials == TRIALS
    assert str(result).startswith(f"no divergence in {TRIALS} trials, seed {SEED}, ")


@pytest.mark.parametrize("path", sorted(REGRESSIONS.glob("*.json")), ids=lambda path: path.stem)
def test_what_diverged_once_does_no_more(path: Path) -> None:
    assert differences(load(path)) == []


# -- what is planted is found


def skip(runner: Any, kind: type[AnyStep], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a runner forget a step."""
    perform = runner._perform

    def forgotten(self: Any, step: AnyStep) -> Done:
        return Done(self.clock())

    async def async_perform(self: Any, step: AnyStep, server: Any) -> Any:
        return forgotten(self, step) if isinstance(step, kind) else await perform(self, step, server)

    def sync_perform(self: Any, step: AnyStep, server: Any) -> Any:
        return forgotten(self, step) if isinstance(step, kind) else perform(self, step, server)

    monkeypatch.setattr(runner, "_perform", async_perform if runner is AsyncRunner else sync_perform)


@pytest.mark.parametrize("runner", [SyncRunner, AsyncRunner], ids=["threads", "asyncio"])
@pytest.mark.parametrize("kind", [Announce, Drain, Cancel, Reclaim, Dispose, Stop], ids=lambda kind: kind.__name__)
def test_a_runner_that_forgets_a_step_is_found(
    runner: type[Any], kind: type[AnyStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    skip(runner, kind, monkeypatch)
    assert run_campaign(ENOUGH, SEED, shrink=False).divergence is not None


def refusing_with(answer: Answer) -> Callable[..., Answer]:
    def refusal(accept: str | None, *, ends_streams: bool) -> Answer:
        return answer

    return refusal


def other_status(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = problem(502, "gone", [("retry-after", "1")], close=True)
    monkeypatch.setattr(pooldrain_async.middleware, "refusal", refusing_with(answer))


def other_header(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = problem(503, json.loads(REFUSED.body)["detail"], [("retry-after", "2")], close=True)
    monkeypatch.setattr(pooldrain_sync.middleware, "refusal", refusing_with(answer))


def connection_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooldrain_async.middleware, "_CLOSE", (b"x-connection", b"close"))


def leak_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    end = AsyncRunner.end

    def forgiving(self: AsyncRunner, request: Any) -> None:
        request.checkouts.clear()
        end(self, request)

    monkeypatch.setattr(AsyncRunner, "end", forgiving)


def waiters_left_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def turn_away(self: ClosableQueuePool) -> None:
        pass

    monkeypatch.setattr(ClosableQueuePool, "turn_away", turn_away)


def statement_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    def drivers(self: SyncPool, requests: Any) -> list[Any]:
        return []

    monkeypatch.setattr(SyncPool, "drivers", drivers)


def connection_not_reclaimed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reclaim(self: AsyncPool, checkout: Any) -> bool:
        return False

    monkeypatch.setattr(AsyncPool, "reclaim", reclaim)


def request_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(self: SyncRunner) -> Done:
        return Done(self.clock())

    monkeypatch.setattr(SyncRunner, "give_up", give_up)


def exit_code_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lenient(*args: Any) -> Generator[Any, Any, ShutdownReport]:
        return replace((yield from shutdown_sequence(*args)), exit_code=0)

    monkeypatch.setattr(pooldrain_sync.runner, "shutdown_sequence", lenient)


@pytest.mark.parametrize(
    "plant",
    [
        other_status,
        other_header,
        connection_left_open,
        leak_not_counted,
        waiters_left_waiting,
        statement_not_cancelled,
        connection_not_reclaimed,
        request_not_given_up,
        exit_code_changed,
    ],
    ids=lambda plant: plant.__name__.replace("_", "-"),
)
def test_what_is_planted_in_one_shell_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert run_campaign(ENOUGH, SEED, shrink=False).divergence is not None


def test_a_defect_of_both_shells_is_found_by_the_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    for runner in (SyncRunner, AsyncRunner):
        skip(runner, Cancel, monkeypatch)
    found = run_campaign(ENOUGH, SEED, shrink=False).divergence
    assert found is not None
    assert any(difference.startswith("threads: in_flight: ") for difference in found.differences)
    assert any(difference.startswith("asyncio: in_flight: ") for difference in found.differences)


def test_what_is_found_is_shrunk_and_kept_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as planted:
        other_status(planted)
        assert run(["fuzz", "--trials", str(ENOUGH), "--seed", "1", "--regressions", str(tmp_path)]) == 1
        told = capsys.readouterr().out
        [path] = tmp_path.iterdir()
        assert run(["fuzz", "--replay", str(path)]) == 1
    assert "DIVERGENCE in " in told
    assert str(path) in told
    assert '"status": 503' in told
    kept = load(path)
    assert [action.name for action in kept.script].count("start") <= 2, (
        "one that holds the drain up, one that comes late"
    )
    assert len(kept.script) <= 6
    assert kept.as_dict()["pool"]["pool_size"] == 1
    assert run(["fuzz", "--replay", str(path)]) == 0


# -- a campaign


def drawn(trials: int, number: int, monkeypatch: pytest.MonkeyPatch) -> list[FuzzScenario]:
    """What a campaign draws."""
    seen: list[FuzzScenario] = []

    def nothing(scenario: FuzzScenario) -> list[str]:
        seen.append(scenario)
        return []

    monkeypatch.setattr(campaign, "differences", nothing)
    assert run_campaign(trials, number).trials == trials
    return seen


def test_a_seed_draws_the_same_scenarios_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first, again, other = (drawn(60, number, monkeypatch) for number in (1, 1, 2))
    assert first == again
    assert first != other


def test_everything_that_can_happen_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    actions = [action for scenario in drawn(800, SEED, monkeypatch) for action in scenario.script]
    assert {action.name for action in actions} == set(ACTIONS)
    assert {each for action in actions if action.name == "start" for each in action.argument} == set(OPERATIONS)


def test_a_harness_that_fails_counts_as_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(scenario: FuzzScenario) -> list[str]:
        raise RuntimeError("a thread does not end")

    monkeypatch.setattr(campaign, "differences", broken)
    divergence = run_campaign(3, 1).divergence
    assert divergence is not None
    assert divergence.differences == ["the harness failed: RuntimeError: a thread does not end"]


def test_a_scenario_that_diverges_now_and_then_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[], [], ["differs"]])

    def now_and_then(scenario: FuzzScenario) -> list[str]:
        return next(answers, [])

    monkeypatch.setattr(campaign, "differences", now_and_then)
    divergence = run_campaign(10, 1).divergence
    assert divergence is not None
    assert divergence.differences == ["not every time: the harness leaves something to chance", "differs"]


def test_the_command_names_the_seed_it_drew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def quick(trials: int, number: int, **options: Any) -> Result:
        assert 0 <= number < 1_000_000
        return Result(number, trials, 0.5, None)

    monkeypatch.setattr(campaign, "run_campaign", quick)
    assert run(["fuzz", "--trials", "7"]) == 0
    assert "no divergence in 7 trials, seed " in capsys.readouterr().out


def test_an_interrupted_campaign_says_how_far_it_came(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(trials: int, number: int, *, told: Callable[[int], None]) -> Result:
        told(5)
        raise KeyboardInterrupt

    monkeypatch.setattr(campaign, "run_campaign", interrupted)
    assert run(["fuzz", "--seed", "3"]) == 130
    assert "interrupted: no divergence in 5 trials, seed 3" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scenario": {"script": [["fly"]]}}', '{"scenario": {}}'])
def test_a_file_that_is_no_scenario_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scenario.json"
    path.write_text(text, encoding="utf-8")
    assert run(["fuzz", "--replay", str(path)]) == 2
    assert f"{path} is no scenario: " in capsys.readouterr().err


# -- scenarios


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_a_scenario_survives_its_file(scenario: FuzzScenario) -> None:
    assert FuzzScenario.from_dict(json.loads(json.dumps(scenario.as_dict()))) == scenario


def test_a_kept_scenario_is_loaded_as_it_was(tmp_path: Path) -> None:
    path = save(Divergence(EVERYTHING, ["one\ntwo"]), tmp_path / "new")
    assert load(path) == EVERYTHING
    assert json.loads(path.read_text("utf-8"))["differences"] == ["one", "two"]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_trial_takes_the_same_course_every_time(stage: Any) -> None:
    first, again = play(stage, EVERYTHING), play(stage, EVERYTHING)
    assert first == again
    assert first.report is not None
    assert first.report["requests"]["seen"] == 5
    assert first.rows == ["row 1"]


def test_a_trial_leaves_no_thread_of_its_own_behind_and_no_clock_of_its_own() -> None:
    before = {thread for thread in threading.enumerate() if thread.name != "fuzz"}
    assert differences(EVERYTHING) == []
    assert {thread for thread in threading.enumerate() if thread.name != "fuzz"} == before
    assert vars(pooldrain_sync.runner)["threading"] is threading


# -- threads that take turns


@pytest.fixture(name="turns")
def _turns() -> Iterator[Turns]:
    turns = Turns()
    yield turns
    turns.end()


def test_one_thread_runs_until_it_waits(turns: Turns) -> None:
    seen: list[str] = []

    def talk(name: str) -> None:
        for number in range(2):
            seen.append(f"{name}{number}")
            turns.sleep(1.0)

    for name in "ab":
        Thread(turns, talk, args=(name,)).start()
    turns.run()
    assert seen == ["a0", "b0"]
    turns.move_to(0.9)
    assert seen == ["a0", "b0"]
    turns.move_to(1.0)
    assert seen == ["a0", "b0", "a1", "b1"]
    assert turns.clock() == 1.0


def test_a_condition_wakes_who_came_first_and_times_out(turns: Turns) -> None:
    condition = Condition(turns, threading.RLock())
    seen: list[tuple[int, bool]] = []
    opened: list[int] = []

    def wait(number: int, timeout: float | None) -> None:
        with condition:
            seen.append((number, bool(condition.wait_for(lambda: number in opened, timeout))))

    for number, timeout in ((1, None), (2, 5.0), (3, 5.0)):
        Thread(turns, wait, args=(number, timeout)).start()
    turns.run()
    with condition:
        opened += [1, 3]
        condition.notify()
    turns.run()
    assert seen == [(1, True)]
    with condition:
        condition.notify_all()
    turns.run()
    assert seen == [(1, True), (3, True)]
    turns.move_to(5.0)
    assert seen == [(1, True), (3, True), (2, False)]


def test_a_thread_is_joined_when_it_ends_or_for_as_long_as_one_likes(turns: Turns) -> None:
    sleeper = Thread(turns, lambda: turns.sleep(3.0))
    seen: list[tuple[float, bool]] = []

    def join() -> None:
        sleeper.start()
        for timeout in (0.0, 1.0, None):
            sleeper.join(timeout)
            seen.append((turns.now, sleeper.is_alive()))

    Thread(turns, join).start()
    turns.run()
    turns.move_to(10.0)
    assert seen == [(0.0, True), (1.0, True), (3.0, False)]


def test_a_thread_that_raises_is_told(turns: Turns) -> None:
    Thread(turns, lambda: 1 / 0).start()
    turns.run()
    assert [type(error) for error in turns.errors] == [ZeroDivisionError]


def test_the_end_ends_every_thread_where_it_waits() -> None:
    turns = Turns()
    left: list[str] = []

    def wait() -> None:
        try:
            turns.wait()
        finally:
            left.append("left")

    for _ in range(3):
        Thread(turns, wait).start()
    turns.run()
    turns.end()
    assert left == ["left"] * 3
