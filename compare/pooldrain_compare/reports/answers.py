"""The three questions, answered in sentences that are computed from what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from pooldrain_compare.reports.choosing import choice
from pooldrain_compare.reports.costs import cost
from pooldrain_compare.reports.evidence import Evidence
from pooldrain_compare.reports.saving import saved
from pooldrain_compare.reports.sentences import Name, Sentence


@dataclass(frozen=True, slots=True)
class Answer:
    """A question, the answer in a sentence, and what is behind it."""

    question: str
    headline: Sentence
    details: list[Sentence]


def answers(evidence: Evidence) -> list[Answer]:
    """All three."""
    return [
        Answer("What does pooldrain save me?", *_headed(saved(evidence), "shutdown")),
        Answer("What does it cost me?", *_headed(cost(evidence), "overhead")),
        Answer("Which backend should I run?", *_headed(choice(evidence), "throughput")),
    ]


def _headed(sentences: list[Sentence], benchmark: str) -> tuple[Sentence, list[Sentence]]:
    if not sentences:
        return Sentence("Not measured; the benchmark {name} does that.", name=Name(benchmark)), []
    return sentences[0], sentences[1:]
