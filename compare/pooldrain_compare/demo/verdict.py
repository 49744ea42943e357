"""The demo's verdict: one sentence about all servers, and what speaks against them, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pooldrain_compare.demo import expectations
from pooldrain_compare.demo.observe import DemoRun


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said about all servers: what went wrong, line by line, and the sentence."""

    good: bool
    complaints: tuple[str, ...]
    sentence: str


def reach_verdict(observations: Sequence[DemoRun], broken: dict[str, str]) -> Verdict:
    """Judge observations, and the servers that did not start or did not end."""
    failures = [f"{o.backend.name}: {failure}" for o in observations for failure in expectations.failures(o)]
    differences = [f"differs: {difference}" for difference in expectations.differences(observations)]
    complaints = (*(f"{name}: {why}" for name, why in broken.items()), *failures, *differences)
    if broken:
        return Verdict(False, complaints, f"no comparison: {', '.join(broken)} failed")
    names = " and ".join(", ".join(o.backend.name for o in observations).rsplit(", ", 1))
    count = len(expectations.facts(observations[0]))
    held = "something that has to hold did not, see above" if failures else "nothing lost, nothing left over"
    if len(observations) == 1:
        text = f"{names} alone, nothing to compare with; {held}"
    elif differences:
        text = f"DIFFERENT: {len(differences)} of {count} facts of drain and dispose differ between {names}; {held}"
    else:
        text = f"identical: {names} drained and disposed alike in all of {count} facts; {held}"
    return Verdict(not complaints, complaints, text)
