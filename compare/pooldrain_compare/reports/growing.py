"""How drain, dispose, leak scan and cancel grow with size."""

from __future__ import annotations

from collections.abc import Iterator

from pooldrain_compare.reports.evidence import Evidence, curve, growth
from pooldrain_compare.reports.figures import Figure, at, number, quantity, times
from pooldrain_compare.reports.metrics import metric
from pooldrain_compare.reports.sentences import Name, Sentence, listing


def growths(evidence: Evidence) -> list[Sentence]:
    """How what is measured over a size grows with it."""
    return list(_growths(evidence))


def _growths(evidence: Evidence) -> Iterator[Sentence]:
    mine = [each for each in evidence.measurements("scale", ours=True) if each.x is not None]
    for case, name in dict.fromkeys((each.case, each.metric) for each in mine):
        own = [each for each in mine if (each.case, each.metric) == (case, name)]
        parts, powers = [], []
        for system in dict.fromkeys(each.system for each in own):
            points = curve([each for each in own if each.system == system])
            power = growth(points)
            if power is None:
                continue
            (first, low), (last, high) = points[0], points[-1]
            powers.append(power)
            parts.append(
                Sentence(
                    "{who} takes {ratio} times as long for {much} times the {x_name} ({high}, {x})",
                    who=evidence.who("scale", system),
                    much=number(last / first),
                    x_name=Name(own[0].x_name or ""),
                    ratio=times(high.median / low.median),
                    high=quantity(high.median, own[0].unit),
                    x=Figure(at(last, own[0].x_name), last),
                )
            )
        if parts:
            yield Sentence(
                "{what} {how}: {parts}.",
                what=Name(metric(name).title),
                how=Sentence(_how(max(powers))),
                parts=listing(parts),
            )


def _how(power: float) -> str:
    if power < 0.15:
        return "does not grow"
    if power < 0.85:
        return "grows more slowly than the number"
    return "grows with the number" if power <= 1.15 else "grows faster than the number"
