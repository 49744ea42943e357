"""What it costs while nothing is shut down: time, memory, throughput."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pooldrain_compare.bench.checkouts import MEMORY as CHECKOUT_MEMORY
from pooldrain_compare.bench.checkouts import POOL_ONLY, QUERY
from pooldrain_compare.bench.gates import QUERIED, SERVED
from pooldrain_compare.bench.throughput import MEMORY as SERVER_MEMORY
from pooldrain_compare.reports.evidence import Duel, Evidence
from pooldrain_compare.reports.figures import Figure, added, at, number, quantity, share, times
from pooldrain_compare.reports.sentences import Name, Sentence, listing
from pooldrain_compare.reports.targets import checkouts, request_shares


def cost(evidence: Evidence) -> list[Sentence]:
    """Time of a checkout and a request, memory, throughput."""
    found = (
        _cost_headline(evidence),
        _requests(evidence),
        _checkouts(evidence, POOL_ONLY, "The pool alone, a checkout with its checkin"),
        _checkouts(evidence, QUERY, "With a query on PostgreSQL in between it"),
        _memory(evidence, "overhead", CHECKOUT_MEMORY, "A checkout that is tracked keeps {more} in memory"),
        _throughput_kept(evidence),
        _memory(evidence, "throughput", SERVER_MEMORY, "A server's process takes {more} of memory"),
    )
    return [each for each in found if each]


def _cost_headline(evidence: Evidence) -> Sentence | None:
    parts = []
    for request, name in ((QUERIED, "asks the database"), (SERVED, "does nothing")):
        if shares := [value for value, _ in request_shares(evidence, request)]:
            template = "at most {more} to a request that {does}"
            parts.append(Sentence(template, more=added(max(shares), "%"), does=Name(name)))
    if duels := checkouts(evidence):
        parts.append(Sentence("at most {more} to a checkout", more=added(max(duel.added for duel in duels), "us")))
    found = [Sentence("adds {parts}", parts=listing(parts))] if parts else []
    if kept := _kept(evidence):
        left = share(statistics.median(value for value, _ in kept))
        found.append(Sentence("leaves a server {share} of its requests per second", share=left))
    return Sentence("While nothing is shut down it {does} (medians).", does=listing(found, ", and ")) if found else None


def _requests(evidence: Evidence) -> Sentence | None:
    parts = []
    for duel in evidence.duels("overhead", "time per request", SERVED):
        alone = [gate for _, gate in request_shares(evidence, SERVED) if gate.theirs.system == duel.theirs.system]
        if alone and duel.paired_ratio is not None:
            parts.append(
                Sentence(
                    "{more} on {server}, where a served request takes {served} ({ratio} times that with the gate)",
                    more=added(max(gate.added for gate in alone), alone[0].ours.unit),
                    server=evidence.who("overhead", duel.theirs.system),
                    served=quantity(duel.theirs_summary.median, duel.theirs.unit),
                    ratio=times(duel.paired_ratio),
                )
            )
    return Sentence("The gate adds {parts}.", parts=listing(parts)) if parts else None


def _checkouts(evidence: Evidence, case: str, start: str) -> Sentence | None:
    parts = []
    for duels in _by_system(checkouts(evidence, case)):
        deepest = max(duels, key=lambda duel: duel.ours.x or 0.0)
        ratio, x = deepest.paired_ratio, deepest.ours.x
        if ratio is None:
            continue
        parts.append(
            Sentence(
                "{ratio} times as long with {ours} ({mine} instead of {bare}{depth})",
                ratio=times(ratio),
                ours=evidence.who("overhead", deepest.ours.system),
                mine=quantity(deepest.ours_summary.median, deepest.ours.unit),
                bare=quantity(deepest.theirs_summary.median, deepest.theirs.unit),
                depth=Sentence("") if x is None else Sentence(", {x}", x=Figure(at(x, deepest.ours.x_name), x)),
            )
        )
    return Sentence("{start} takes {parts}.", start=Sentence(start), parts=listing(parts)) if parts else None


def _by_system(duels: Sequence[Duel]) -> list[list[Duel]]:
    systems = dict.fromkeys(duel.ours.system for duel in duels)
    return [[duel for duel in duels if duel.ours.system == system] for system in systems]


def _memory(evidence: Evidence, benchmark: str, case: str, start: str) -> Sentence | None:
    duels = [duel for duel in evidence.duels(benchmark, "memory", case) if duel.partners]
    if not duels:
        return None
    found = [duel.added for duel in duels]
    more = added(statistics.median(found), duels[0].ours.unit)
    return Sentence(start + " ({most} at most).", more=more, most=added(max(found), duels[0].ours.unit))


def _kept(evidence: Evidence) -> list[tuple[float, Duel]]:
    """What share of its requests per second a server keeps with pooldrain, load by load."""
    duels = evidence.duels("throughput", "throughput")
    return [(duel.paired_ratio or 0.0, duel) for duel in duels if duel.partners]


def _throughput_kept(evidence: Evidence) -> Sentence | None:
    kept = _kept(evidence)
    if not kept:
        return None
    least, where = min(kept, key=lambda each: each[0])
    return Sentence(
        "The same server answers {share} of the requests per second with pooldrain "
        "(median of {count} loads; {least} at worst: {where}).",
        share=share(statistics.median(value for value, _ in kept)),
        count=number(len(kept)),
        least=share(least),
        where=evidence.situation("throughput", where.ours),
    )
