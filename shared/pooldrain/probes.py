"""The probes that any application gets: who answers `/livez` and `/readyz`, and what, in each phase."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pooldrain import answers
from pooldrain.answers import Answer
from pooldrain.phases import Phase

AnsweredBy = Literal["own", "app", "off"]

# What a probe asks with; anything else at its path is the application's.
_METHODS = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Probes:
    """Who answers them: `own`, pooldrain; `app`, the application while it is ready, then pooldrain; `off`, nobody."""

    answered_by: AnsweredBy = "own"
    livez: str = "/livez"
    readyz: str = "/readyz"
    others: frozenset[str] = frozenset()  # paths of the application that are answered in every phase, too
    uncounted: frozenset[str] = field(init=False)  # never refused, never counted, never behind a busy thread

    def __post_init__(self) -> None:
        probes = frozenset() if self.answered_by == "off" else frozenset({self.livez, self.readyz})
        object.__setattr__(self, "uncounted", probes | self.others)

    def answer(self, method: str, path: str, phase: Phase) -> Answer | None:
        """The answer to a request at one of the `uncounted` paths; None if the application is to give it."""
        if self.answered_by == "off" or method not in _METHODS:
            return None
        if self.answered_by == "app" and phase in (Phase.STARTING, Phase.READY):
            return None
        if path == self.livez:
            return answers.livez()
        return answers.readyz(phase) if path == self.readyz else None
