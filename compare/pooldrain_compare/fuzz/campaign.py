"""Many trials from one seed; what diverges is shrunk to the least that does, and kept as a regression."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.errors import Flaky

from pooldrain.errors import describe_error
from pooldrain_compare.fuzz.fuzz_scenario import FuzzScenario
from pooldrain_compare.fuzz.strategies import scenarios
from pooldrain_compare.fuzz.trial import differences


@dataclass(frozen=True, slots=True)
class Divergence:
    """A scenario on which the shells differ, or which the checker rejects."""

    scenario: FuzzScenario
    differences: list[str]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; the differences are there to be read."""
        lines = [line for difference in self.differences for line in difference.splitlines()]
        return {"scenario": self.scenario.as_dict(), "differences": lines}


@dataclass(frozen=True, slots=True)
class Result:
    """How a campaign went. The same seed draws the same scenarios, with the same versions of everything."""

    seed: int
    trials: int  # those of shrinking not counted
    seconds: float
    divergence: Divergence | None

    def __str__(self) -> str:
        found = "no divergence" if self.divergence is None else "DIVERGENCE"
        return f"{found} in {self.trials} trials, seed {self.seed}, {self.seconds:.1f} s"


class _DivergedError(Exception):
    """Tells Hypothesis what to shrink."""

    def __init__(self, divergence: Divergence) -> None:
        super().__init__()
        self.divergence = divergence


def run_campaign(
    trials: int, number: int, *, shrink: bool = True, told: Callable[[int], None] = lambda done: None
) -> Result:
    """Run `trials` trials drawn from seed `number`, or as many as it takes to find a divergence.

    `told` is called with the number of trials done, after each.
    """
    done = 0
    diverged: Divergence | None = None
    started = time.monotonic()

    @seed(number)
    @settings(
        max_examples=trials,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
    )
    @given(scenarios())
    def trial(scenario: FuzzScenario) -> None:
        nonlocal done, diverged
        found = try_out(scenario)
        if diverged is None:
            done += 1
            told(done)
        if found:
            diverged = Divergence(scenario, found)
            raise _DivergedError(diverged)

    try:
        trial()
    except _DivergedError as error:
        diverged = error.divergence  # the least one: Hypothesis ends with it
    except Flaky:
        assert diverged is not None
        diverged.differences.insert(0, "not every time: the harness leaves something to chance")
    return Result(number, done, time.monotonic() - started, diverged)


def try_out(scenario: FuzzScenario) -> list[str]:
    """The differences; one that the harness itself stumbles over counts as well."""
    try:
        return differences(scenario)
    except Exception as error:  # noqa: BLE001 - whatever it is, the scenario that brings it about is wanted
        return [f"the harness failed: {describe_error(error)}"]


def save(divergence: Divergence, directory: Path) -> Path:
    """Keep a divergence as a regression; its file."""
    content = divergence.as_dict()
    name = hashlib.sha256(json.dumps(content["scenario"]).encode()).hexdigest()[:8]
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def load(path: Path) -> FuzzScenario:
    """The scenario of a regression. Raises OSError, ValueError, KeyError or TypeError for what is none."""
    return FuzzScenario.from_dict(json.loads(path.read_text(encoding="utf-8"))["scenario"])
