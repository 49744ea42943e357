"""Where baselines are better, and the first paragraph, which says so."""

from __future__ import annotations

from pooldrain_compare.reports.evidence import Duel, Evidence
from pooldrain_compare.reports.figures import number, quantity
from pooldrain_compare.reports.metrics import metric, titled
from pooldrain_compare.reports.reasons import requests_lost
from pooldrain_compare.reports.sentences import Name, Sentence, listing
from pooldrain_compare.reports.targets import target_results

_MOST_NAMED = 6  # in the first paragraph


def beaten(evidence: Evidence) -> list[Duel]:
    """Where a baseline is better than its counterpart of ours, the clearest first."""
    return sorted(
        (duel for name in evidence.results for duel in evidence.duels(name) if duel.lost), key=lambda duel: -duel.lead
    )


def price(evidence: Evidence, duel: Duel) -> Sentence:
    """What the baseline lost while it was quicker."""
    count = requests_lost(evidence, duel)
    if not count or duel.theirs.metric == "lost":
        return Sentence("")
    requests = Name("request" if count == 1 else "requests")
    return Sentence(", losing {count} {requests}", count=quantity(count, "requests"), requests=requests)


def lead(evidence: Evidence) -> list[Sentence]:
    """The first paragraph: what stands, and where others are better."""
    judged = target_results(evidence)
    measured = [each for each in judged if each.met is not None]
    missed = [
        Sentence("{aim} by {gap}", aim=Name(f"“{each.target.aim}”"), gap=each.gap)
        for each in judged
        if each.gap is not None
    ]
    paragraph = []
    if measured:
        paragraph.append(
            Sentence(
                "pooldrain meets {met} of its own {all} targets{unknown}{missed}.",
                met=number(sum(1 for each in measured if each.met)),
                all=number(len(judged)),
                unknown=Sentence(" ({count} not measured)", count=number(len(judged) - len(measured)))
                if len(measured) < len(judged)
                else Sentence(""),
                missed=Sentence("; it misses {parts}", parts=listing(missed)) if missed else Sentence(""),
            )
        )
    compared = [duel for name in evidence.results for duel in evidence.duels(name)]
    if not compared:
        return [*paragraph, Sentence("It has not been compared with anything yet.")]
    lost = beaten(evidence)
    total = number(len(compared))
    if not lost:
        return [*paragraph, Sentence("No baseline is better in any of {all} comparisons.", all=total)]
    clearest: dict[str, Duel] = {}
    for duel in lost:
        clearest.setdefault(titled(duel.ours.metric, duel.ours.case)[0], duel)
    shown = list(clearest.values())[:_MOST_NAMED]
    paragraph.append(
        Sentence(
            "A baseline is better in {lost} of {all} comparisons: {where}{more}.",
            lost=number(len(lost)),
            all=total,
            where=listing([_beaten(evidence, duel) for duel in shown], "; ", "; "),
            more=Sentence("; and {count} more kinds", count=number(len(clearest) - len(shown)))
            if len(clearest) > len(shown)
            else Sentence(""),
        )
    )
    return paragraph


def _beaten(evidence: Evidence, duel: Duel) -> Sentence:
    return Sentence(
        "{who} {wins} ({case}: {theirs} against {ours}{lost})",
        who=evidence.who(duel.benchmark, duel.theirs.system),
        wins=Name(metric(duel.ours.metric).wins),
        case=Name(duel.ours.case),
        theirs=quantity(duel.theirs_summary.median, duel.theirs.unit),
        ours=quantity(duel.ours_summary.median, duel.ours.unit),
        lost=price(evidence, duel),
    )
