"""Sentences whose numbers are computed: a template may not contain a digit, so that none can be typed into it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pooldrain_compare.reports.figures import Figure


@dataclass(frozen=True, slots=True)
class Name:
    """What the data call something: a system's label, a case."""

    text: str

    def __str__(self) -> str:
        return self.text


class Sentence:
    """A template with `{slots}`, and what goes into them: figures, names, other sentences."""

    __slots__ = ("parts",)

    def __init__(self, template: str, **values: Figure | Name | Sentence) -> None:
        self.parts = tuple(_parts(template, values))

    def __str__(self) -> str:
        return "".join(map(str, self.parts))

    def flat(self) -> Iterator[str | Figure | Name]:
        """Its parts, and those of the sentences in it."""
        for part in self.parts:
            if isinstance(part, Sentence):
                yield from part.flat()
            else:
                yield part

    def figures(self) -> list[Figure]:
        """The numbers in it."""
        return [part for part in self.flat() if isinstance(part, Figure)]


def _parts(template: str, values: dict[str, Figure | Name | Sentence]) -> Iterator[str | Figure | Name | Sentence]:
    for index, piece in enumerate(re.split(r"\{(\w+)\}", template)):
        if index % 2:
            yield values[piece]
        elif any(map(str.isdigit, piece)):
            raise ValueError(f"a number is computed, not typed: {piece!r}")
        elif piece:
            yield piece


def listing(items: Sequence[Sentence], last: str = " and ", between: str = ", ") -> Sentence:
    """`a, b and c`."""
    template = ""
    for index in range(len(items)):
        template += ("" if not index else last if index == len(items) - 1 else between) + f"{{{_slot(index)}}}"
    return Sentence(template, **{_slot(index): item for index, item in enumerate(items)})


def _slot(index: int) -> str:
    return f"item{index}"
