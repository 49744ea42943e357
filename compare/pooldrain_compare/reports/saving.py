"""What pooldrain saves: requests, time and database sessions at a shutdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

from pooldrain_compare.bench.results import Measurement
from pooldrain_compare.reports.evidence import Duel, Evidence
from pooldrain_compare.reports.figures import between, number, quantity, times
from pooldrain_compare.reports.rivals import price
from pooldrain_compare.reports.sentences import Name, Sentence, listing


def saved(evidence: Evidence) -> list[Sentence]:
    """Requests, time and database sessions at a shutdown."""
    found = (
        *_lost(evidence),
        _slower(evidence, "last answer to exit", "busy", "After its last answer the process is gone in {ours}"),
        _slower(evidence, "signal to exit", "idle", "When idle it is gone {ours} after SIGTERM"),
        _slower(evidence, "signal to exit", "hung", "With a hung request it is gone in {ours}"),
        _sessions(evidence),
    )
    return [each for each in found if each]


def lost_at_sigterm(evidence: Evidence) -> dict[str, list[float]]:
    """By system, how many requests each shutdown under load has cost."""
    return _pooled(evidence, "lost", ours=None)


def _pooled(evidence: Evidence, name: str, *, ours: bool | None) -> dict[str, list[float]]:
    systems: dict[str, list[float]] = {}
    for each in evidence.measurements("shutdown", name, ours=ours):
        if _by_sigterm(each):
            systems.setdefault(each.system, []).extend(each.samples)
    return systems


def _lost(evidence: Evidence) -> Iterator[Sentence]:
    pooled = partial(_pooled, evidence)
    ours, theirs = pooled("lost", ours=True), pooled("lost", ours=False)
    if not ours or not theirs:
        return
    lost = sum(sum(samples) for samples in ours.values())
    asked = lost + sum(sum(samples) for name in ("answered", "refused") for samples in pooled(name, ours=True).values())
    medians = {name: statistics.median(samples) for name, samples in theirs.items()}
    losing = sorted((name for name in medians if medians[name] > 0), key=lambda name: -medians[name])
    keeping = [name for name in medians if not medians[name]]
    yield Sentence(
        "Under load pooldrain lost {lost} of the {asked} requests that were under way at SIGTERM or came after it, "
        "in {runs} shutdowns.",
        lost=quantity(lost, "requests"),
        asked=quantity(asked, "requests"),
        runs=number(sum(map(len, ours.values()))),
    )
    parts = []
    if losing:
        each = [
            Sentence("{who} {count}", who=evidence.who("shutdown", name), count=quantity(medians[name], "requests"))
            for name in losing
        ]
        parts.append(Sentence("A SIGTERM costs {each} of them (medians)", each=listing(each)))
    if keeping:
        who = [Sentence("{who}", who=evidence.who("shutdown", name)) for name in keeping]
        worst = max(max(theirs[name]) for name in keeping)
        most = quantity(worst, "requests")
        parts.append(Sentence("{who} lost {count} at most", who=listing(who), count=most))
    yield Sentence("{parts}.", parts=listing(parts, "; "))


def _by_sigterm(measurement: Measurement) -> bool:
    return measurement.case.startswith("busy") and "SIGINT" not in measurement.case


def _slower(evidence: Evidence, name: str, case: str, start: str) -> Sentence | None:
    """How long it takes ours, and how many times as long the fastest and the slowest of the others."""
    duels = [
        duel for duel in evidence.duels("shutdown", name) if duel.ours.case.startswith(case) and duel.ratio is not None
    ]
    ours = [each for each in evidence.measurements("shutdown", name, ours=True) if each.case.startswith(case)]
    if not duels or not ours:
        return None
    medians = [statistics.median(each.samples) for each in ours]
    slowest = max(duels, key=_ratio)
    others = [duel for duel in duels if duel.theirs.system != slowest.theirs.system]
    parts = [
        Sentence(start, ours=between(min(medians), max(medians), ours[0].unit)),
        _as_long(evidence, "{who} takes {ratio} times as long ({time}{lost})", slowest),
    ]
    if others:
        quickest = min(others, key=_ratio)
        parts.append(_as_long(evidence, "the quickest other, {who}, {ratio} times ({time}{lost})", quickest))
    return Sentence("{all}.", all=listing(parts, ", "))


def _ratio(duel: Duel) -> float:
    return duel.ratio or 0.0


def _as_long(evidence: Evidence, template: str, duel: Duel) -> Sentence:
    return Sentence(
        template,
        who=evidence.who(duel.benchmark, duel.theirs.system),
        ratio=times(_ratio(duel)),
        time=quantity(duel.theirs_summary.median, duel.theirs.unit),
        lost=price(evidence, duel),
    )


def _sessions(evidence: Evidence) -> Sentence | None:
    leaking = [each for each in evidence.measurements("shutdown", "connections left") if "leak" in each.case]
    systems = evidence.results["shutdown"].systems if leaking else {}
    ours = [max(each.samples) for each in leaking if systems[each.system].ours]
    theirs = [each for each in leaking if not systems[each.system].ours]
    if not ours or not theirs:
        return None
    worst = max(theirs, key=lambda each: statistics.median(each.samples))
    if not any(ours) and not any(max(each.samples) for each in theirs):
        return Sentence(
            "With {case} no session is left on the database server when the process ends, whoever served.",
            case=Name(worst.case),
        )
    return Sentence(
        "With {case} it leaves {ours} sessions on the database server when its process ends, {who} {count}.",
        case=Name(worst.case),
        ours=quantity(max(ours), "connections"),
        who=evidence.who("shutdown", worst.system),
        count=quantity(statistics.median(worst.samples), "connections"),
    )
