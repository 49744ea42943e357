"""What has to hold on each backend, and what has to be equal on all.

The *facts* of an observation are what does not depend on chance: a run under load answers another number of
requests each time, but drains and disposes in the same way. Two backends behave identically when all their
facts are equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from pooldrain_compare.demo import tutorial
from pooldrain_compare.demo.observe import DemoRun
from pooldrain_compare.harness.load import Outcome

PHASES = ("ANNOUNCING", "DRAINING", "CANCELLING", "TEARDOWN", "RECLAIMING", "DISPOSING", "STOPPING")
# Events of single requests, checkouts and connections: how many there are is the load's doing.
_BY_CHANCE = (
    *("request_admitted", "request_refused", "request_finished"),
    *("checkout", "checkin", "connection_opened", "connection_closed"),
)
_SHOWN = 5
_WIDTH = 240  # of a value that differs; the whole of it is in the result file


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact that is not equal on all backends."""

    fact: str
    values: dict[str, Any]  # by backend

    def __str__(self) -> str:
        shown = (f"{name} {shorten(repr(value), _WIDTH)}" for name, value in self.values.items())
        return f"{self.fact}: {'; '.join(shown)}"


def in_flight(observation: DemoRun) -> int:
    """Requests in flight when the backend took note of the signal, by its own count."""
    return int(observation.report.get("requests", {}).get("in_flight_at_signal", 0))


def in_flight_answered(observation: DemoRun) -> bool:
    """Whether all of those were answered 2xx: as many came back after the signal, and no other answer did."""
    o = observation
    late = sum(1 for e in o.load.exchanges if e.status in (200, 201) and e.ended_at > o.signal_at)
    failed = any(e.status not in (200, 201, 503, None) for e in o.load.exchanges)
    lost = any(e.sent_at is None or e.sent_at <= o.signal_at for e in o.load.lost)
    cut = o.report.get("requests", {}).get("cut")
    return late >= in_flight(o) and not failed and not lost and cut == 0


def leaks(observation: DemoRun) -> Counter[tuple[str, str]]:
    """Connections still out at the end, by holder and rule."""
    return Counter((str(h["holder"]), str(h["rule"])) for h in observation.report.get("outstanding", ()))


def call_sites(observation: DemoRun) -> dict[str, list[str]]:
    """Where the holders checked their connections out."""
    sites: dict[str, list[str]] = {}
    for holding in observation.report.get("outstanding", ()):
        found = sites.setdefault(str(holding["holder"]), [])
        if holding["call_site"] not in found:
            found.append(str(holding["call_site"]))
    return sites


def phase_seconds(observation: DemoRun) -> dict[str, float]:
    """Duration of each phase."""
    return {str(p["phase"]): float(p["seconds"]) for p in observation.report.get("phases", ())}


def failures(observation: DemoRun) -> list[str]:
    """What should have held on this backend and did not, one line each."""
    return [text for holds, text in _expectations(observation) if not holds]


def _expectations(o: DemoRun) -> Iterable[tuple[bool, str]]:
    for page in o.pages:
        yield page.as_printed, f"{page.path} answered {page.status}, not what the tutorial prints: {page.body.strip()}"

    requests = o.report.get("requests", {})
    yield bool(o.report), "no report was written"
    yield o.ended.code == 0, f"exit code {o.ended.code}"
    yield not o.ended.stragglers, "a process of its group outlived it"
    yield o.report.get("outcome") == "drained", f"outcome {o.report.get('outcome')}"
    yield tuple(phase_seconds(o)) == PHASES, f"phases {tuple(phase_seconds(o))}"
    yield in_flight(o) > 0, "nothing was in flight at SIGTERM, so nothing was shown"

    lost = o.load.lost
    yield not lost, f"{len(lost)} requests lost: {_some(f'{e.route} {e.mode.value} {e.reason}' for e in lost)}"
    odd = {status: count for status, count in o.load.statuses.items() if status not in (200, 201, 503)}
    yield not odd, f"answers with status {odd}"
    unsent = {reason: n for reason, n in o.load.reasons.items() if reason.startswith("not_sent") and n}
    unsent.pop("not_sent: refused", None)  # how every client learns that the listener is closed
    yield not unsent, f"connections taken and dropped unread: {unsent}"
    early = [e for e in o.load.exchanges if e.outcome is not Outcome.ANSWERED and e.ended_at < o.signal_at]
    yield not early, f"{len(early)} requests not answered before the signal: {_some(_what(e) for e in early)}"
    yield requests.get("cut") == 0, f"{requests.get('cut')} requests cut"
    yield in_flight_answered(o), f"of {in_flight(o)} requests in flight at SIGTERM not all were answered 2xx"
    answered = o.load.count(Outcome.ANSWERED) + tutorial.COUNTED_REQUESTS
    yield (
        bool(lost) or requests.get("finished") == answered,
        f"the backend finished {requests.get('finished')} requests, the clients were answered {answered}",
    )
    refused = o.load.count(Outcome.REFUSED)
    yield refused > 0, "nothing was refused: the load ended before the drain"
    yield (
        bool(lost) or requests.get("refused") == refused,
        f"the backend refused {requests.get('refused')} requests, the clients saw {refused} refused",
    )
    for refusal in o.load.refusals:
        headers = dict(refusal.headers)
        closes = headers.get("connection", "").lower() == "close" and "retry-after" in headers
        yield closes, f"a 503 without Connection: close and Retry-After: {headers}"

    yield not o.orders.missing, f"acknowledged orders missing: {_some(o.orders.missing)}"
    yield not o.orders.repeated, f"orders stored more than once: {_some(o.orders.repeated)}"
    yield not o.orders.unwanted, f"orders stored although refused: {_some(o.orders.unwanted)}"
    yield o.orders.acknowledged > 0, "no order was acknowledged"

    expected = Counter({("GET /db-test-leak", "unreturned"): tutorial.LEAKS})
    yield leaks(o) == expected, f"leaks {dict(leaks(o))}"
    yield o.left.finally_ == 0, f"{o.left.finally_} sessions left on the database server"
    counts = o.report.get("connections", {})
    yield (
        counts.get("opened", -1) == counts.get("closed", 0) + counts.get("reclaimed", 0),
        f"connections do not add up: {counts}",
    )
    yield not o.stray, f"output beside the log: {_some(o.stray)}"
    wrong = [r for r in o.log if r.get("level") in ("error", "critical") or "traceback" in r]
    yield not wrong, f"errors in the log: {_some(str(r.get('message')) for r in wrong)}"
    warned = [r for r in o.log if r.get("level") == "warning" and r.get("event") == "log"]
    yield not warned, f"warnings in the log: {_some(str(r.get('message')) for r in warned)}"


def facts(o: DemoRun) -> dict[str, Any]:
    """What has to be equal on all backends."""
    report, connections = o.report, o.report.get("connections", {})
    return {
        "walkthrough, statuses": tuple(page.status for page in o.pages),
        "walkthrough, bodies": tuple(page.body for page in o.pages),
        "walkthrough, headers": tuple(page.headers for page in o.pages),
        "exit code": o.ended.code,
        "outcome": report.get("outcome"),
        "signal": (report.get("signal"), report.get("signals"), report.get("hurried")),
        "phases in the report": tuple(phase_seconds(o)),
        "phases in the transcript": tuple(e.get("phase") for e in o.transcript if e.get("event") == "phase"),
        "story in the transcript": _story(o.transcript),
        "story in the log": _story(o.log),
        "warnings": tuple(sorted(Counter(r["event"] for r in o.log if r.get("level") == "warning").items())),
        "leaks by holder and rule": tuple(sorted(leaks(o).items())),
        "what leaks held": tuple(
            sorted(
                {
                    (str(h["holder"]), str(h["statement"]), str(h["in_transaction"]))
                    for h in report.get("outstanding", ())
                }
            )
        ),
        "leak counters": tuple(sorted(report.get("leaks", {}).items())),
        "connections": (connections.get("reclaimed"), connections.get("abandoned")),
        "sessions left": o.left.finally_,
        "requests lost": o.load.count(Outcome.LOST),
        "requests cut": report.get("requests", {}).get("cut"),
        "statuses": tuple(sorted(o.load.statuses)),
        "answer to a refused request": tuple(sorted((r.headers, r.body) for r in o.load.refusals)),
        "ways not to be served": tuple(sorted(o.load.reasons)),
        "orders missing, repeated, unwanted": tuple(map(len, (o.orders.missing, o.orders.repeated, o.orders.unwanted))),
        "errors noted": tuple(report.get("errors", ())),
        "keys of the report": tuple(report),
    }


def _story(events: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Names of the events from the signal on, in order, without those of single requests and connections."""
    names = [str(event.get("event")) for event in events]
    start = names.index("signal") if "signal" in names else len(names)
    return tuple(name for name in names[start:] if name not in _BY_CHANCE)


def differences(observations: Sequence[DemoRun]) -> list[Difference]:
    """The facts that are not equal on all backends."""
    by_backend = {o.backend.name: facts(o) for o in observations}
    names = dict.fromkeys(name for found in by_backend.values() for name in found)
    found = []
    for name in names:
        values = {backend: theirs.get(name) for backend, theirs in by_backend.items()}
        if any(value != next(iter(values.values())) for value in values.values()):
            found.append(Difference(name, values))
    return found


def _what(exchange: Any) -> str:
    return f"{exchange.route} {exchange.outcome.value} {exchange.status or exchange.reason}"


def _some(items: Iterable[str]) -> str:
    listed = list(items)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return "; ".join(listed[:_SHOWN]) + more
