"""The catalogue: scenarios as real processes, on every server and database they are about, compared."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from pooldrain_compare.harness.servers import BACKENDS
from pooldrain_compare.parity.cases import Case, CaseResult, ParityOptions, plan, run_cases, stage
from pooldrain_compare.parity.scenarios import (
    SCENARIOS,
    SQLITE,
    Answered,
    AtLatch,
    AtQuery,
    Open,
    Scenario,
    Send,
    Start,
)

# One of each kind, to keep `make test` short; the whole catalogue is `make parity`.
SHORT_FORM = (
    "idle",
    "look-inside",
    "slow-request",
    "requests-during-the-drain",
    "kept-connections",
    "longer-than-the-drain-timeout",
    "event-streams-end",
    "waiters-are-cut",
    "two-engines",
    "leak-unreturned",
    "background-task-overstays",
    "background-work-overstays",
    "teardown",
    "teardown-hangs",
    "adopted-engine-leak",
    "escaped-pool-timeout",
    "escaped-lost-connection",
    "announce-period",
    "second-signal",
    "third-signal",
    "fail-on-leak",
)
CASES = plan(ParityOptions(scenarios=SHORT_FORM))
PATIENCE = 600.0  # seconds for everything that is run before a case as well


@pytest.fixture(scope="module")
def verdicts(
    request: pytest.FixtureRequest, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[CaseResult]]]:
    """The verdicts of the chosen cases, as they come: services of one case start while another's end."""
    wanted = {item.name for item in request.session.items}
    chosen = [case for case in CASES if f"{test_all_servers_do_the_same.__name__}[{_id(case)}]" in wanted]
    coming: dict[str, Future[CaseResult]] = {case.name: Future() for case in chosen}

    def work() -> None:
        try:
            directory = tmp_path_factory.mktemp("catalogue")
            with stage(database_url, directory) as on:
                run_cases(
                    on, chosen, lambda verdict: coming[verdict.case.name].set_result(verdict), directory=directory
                )
        except BaseException as error:  # noqa: BLE001 - raised where a verdict is waited for
            for future in coming.values():
                if not future.done():
                    future.set_exception(error)

    thread = threading.Thread(target=work, name="catalogue")
    thread.start()
    yield coming
    thread.join()


def _id(case: Case) -> str:
    return case.name.replace(" ", "-")


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_all_servers_do_the_same(verdicts: dict[str, Future[CaseResult]], case: Case) -> None:
    verdict = verdicts[case.name].result(PATIENCE)
    assert verdict.good, "\n".join(verdict.complaints())


# --- the catalogue itself -------------------------------------------------------------------------------------


def test_there_are_enough() -> None:
    assert len(SCENARIOS) >= 30
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    assert len({scenario.shows for scenario in SCENARIOS}) == len(SCENARIOS)
    assert sum(SQLITE in scenario.databases for scenario in SCENARIOS) >= 8
    assert {server.workers for server in BACKENDS.values()} == {1, 2}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_scenario_is_sound(scenario: Scenario) -> None:
    assert "\n" not in scenario.shows
    assert len(scenario.shows) > 20
    assert any(isinstance(step, Send) for step in scenario.steps), "nothing ends it"
    started = [step.name for step in scenario.steps if isinstance(step, Start)]
    assert len(set(started)) == len(started), "names are ids"
    waited = {name for step in scenario.steps if isinstance(step, Answered) for name in step.names}
    assert waited | set(scenario.expect.answers) <= set(started)
    opened = {latch for step in scenario.steps if isinstance(step, Open) for latch in step.latches}
    known = {step.latch for step in scenario.steps if isinstance(step, AtQuery | AtLatch)}
    assert opened <= known, "an open latch that nothing is seen to wait at proves nothing"
