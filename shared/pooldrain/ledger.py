"""The checkout ledger: who holds which connection, since when, from where; and when that is a leak.

What the rules are, `leak_rules` says; here is when each applies. A checkout by a background task that outlives its
request belongs to the task (see `hold_as` and `request_ended`). Plain state, no lock and no clock: the shell calls
under its lock and passes the time in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

from pooldrain.in_flight import CURRENT_REQUEST, Checkout, InFlightRequest
from pooldrain.leak_rules import CERTAIN, LeakRule
from pooldrain.policy import LeakPolicy
from pooldrain.stacks import RawStack, call_sites

# The name of the pool that a service has of its own; what is told of it need not name it.
MAIN_POOL = "main"

# Seconds between two looks for connections that idle while their request's answer is sent.
PINNED_LOOK = 1.0

# Characters of the last statement that are shown, on one line.
STATEMENT_SHOWN = 200

CURRENT_HOLDER: ContextVar[str | None] = ContextVar("pooldrain_current_holder", default=None)


@contextmanager
def hold_as(name: str) -> Generator[None, None, None]:
    """Checkouts inside this block belong to `name` (a background task), not to the running request."""
    token = CURRENT_HOLDER.set(name)
    try:
        yield
    finally:
        CURRENT_HOLDER.reset(token)


@dataclass(frozen=True, slots=True)
class Holding:
    """One outstanding or leaked connection in words, as logs, reports and pages show it."""

    holder: str
    request_id: str | None
    age: float  # seconds since the checkout
    call_site: str  # file:line in function, "" when unknown
    callers: tuple[str, ...]  # who called that, innermost first
    statement: str | None
    in_transaction: bool | None  # None: cannot be told
    rule: str | None  # the leak rule that applied, None for a holder that is merely busy
    pool: str = MAIN_POOL  # the name of the pool, or of its engine

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"held by {self.holder}"]
        if self.request_id:
            parts.append(f"request {self.request_id}")
        parts.append(f"for {self.age:.3f} s")
        if self.in_transaction:
            parts.append("in transaction")
        if self.pool != MAIN_POOL:
            parts.append(f"of {self.pool}")
        if self.call_site:
            parts.append(f"checked out at {self.call_site}")
        if self.statement:
            parts.append(f"last statement: {self.statement}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Leak:
    """A leak as it was found."""

    rule: LeakRule
    checkout: Checkout | None  # None for `threshold`, which blames nobody
    age: float


class CheckoutLedger:
    """Every connection that is checked out, and every leak found so far."""

    def __init__(self, policy: LeakPolicy) -> None:
        self.policy = policy
        self.outstanding: dict[object, Checkout] = {}  # by the pool's record
        self.counts: dict[LeakRule, int] = dict.fromkeys(LeakRule, 0)
        self._above_threshold = False

    def check_out(
        self, key: object, now: float, stack: RawStack, worker: object, proxy: Callable[[], object]
    ) -> Checkout:
        """Enter a checkout; the running request owns it, unless it has ended or `hold_as` names another holder."""
        request = CURRENT_REQUEST.get()
        name = CURRENT_HOLDER.get()
        if name is None and (request is None or not request.ended):
            checkout = Checkout(key, request, now, stack, worker, proxy)
        else:
            checkout = Checkout(key, None, now, stack, worker, proxy)
            checkout.holder_name = name or _background(request)
            checkout.named = name is not None
        self.outstanding[key] = checkout
        if (owner := checkout.request) is not None:
            owner.connected, owner.failure = True, None
            owner.checkouts[checkout] = None
        return checkout

    def check_in(self, key: object) -> Checkout | None:
        """Take a checkout out of the books; None if it was not in them (a checkout that failed half-way)."""
        checkout = self.outstanding.pop(key, None)
        if checkout is not None and (request := checkout.request) is not None:
            request.checkouts.pop(checkout, None)
        if self._above_threshold and not self.at_threshold(self._leaked_out()):
            self._above_threshold = False
        return checkout

    def collected(self, checkout: Checkout, now: float) -> Leak:
        """The garbage collector returned `checkout`: nobody else could."""
        return self._found(LeakRule.COLLECTED, checkout, now)

    def request_ended(
        self, request: InFlightRequest, now: float, outlives: Callable[[Checkout], bool] | None = None
    ) -> list[Leak]:
        """The leaks that the end of `request` reveals.

        `outlives` tells whether a checkout was made by work that still runs after the request; such a
        checkout changes hands to that work, and is no leak.
        """
        leaks = []
        for checkout in list(request.checkouts):
            if self.outstanding.get(checkout.key) is not checkout:
                continue  # another pool's ledger has it
            if outlives is not None and outlives(checkout):
                self._hand_over(checkout, request)
            else:
                leaks.append(self._found(LeakRule.UNRETURNED, checkout, now))
        return leaks

    def background(self) -> list[Checkout]:
        """The checkouts that no request owns, but for those that nobody will return; oldest first."""
        return [c for c in self.outstanding.values() if c.request is None and c.rule not in CERTAIN]

    def worker_ended(self, worker: object, now: float) -> list[Leak]:
        """The leaks that the end of a background task reveals: what it holds, nobody will return."""
        mine = [c for c in self.outstanding.values() if c.worker is worker and c.rule is not LeakRule.UNRETURNED]
        return [self._found(LeakRule.UNRETURNED, checkout, now) for checkout in mine]

    def overdue(self, now: float) -> list[Leak]:
        """The checkouts that passed `leak_age` since the last look."""
        age = self.policy.leak_age
        if age is None:
            return []
        late = [c for c in self.outstanding.values() if _may_be_overdue(c) and now - c.since >= age]
        return [self._found(LeakRule.OVERDUE, checkout, now) for checkout in late]

    def next_overdue(self) -> float | None:
        """The instant (monotonic seconds) at which the next checkout becomes overdue, None if none can."""
        age = self.policy.leak_age
        if age is None:
            return None
        return min((c.since + age for c in self.outstanding.values() if _may_be_overdue(c)), default=None)

    def answering(self) -> list[Checkout]:
        """The checkouts of requests whose answer has begun, but for those that have been told of."""
        return [
            c
            for c in self.outstanding.values()
            if c.rule is None and c.request is not None and not c.request.ended and c.request.status is not None
        ]

    def pinned(self, idle: Collection[Checkout], now: float) -> list[Leak]:
        """The checkouts of `answering` that idled in a transaction from the last look to this one.

        `idle`: those of them that were seen, just now, to be in a transaction and to run nothing.
        """
        leaks = []
        for checkout in self.answering():
            if checkout not in idle or checkout.streams:
                checkout.idle_runs = None
            elif checkout.idle_runs == checkout.runs:
                leaks.append(self._found(LeakRule.PINNED, checkout, now))
            else:
                checkout.idle_runs = checkout.runs
        return leaks

    def at_threshold(self, checkedout: int) -> bool:
        """The tutorial's `connection_leak` flag. Its code says `>`, its printed output `>=`: the output wins."""
        return checkedout >= self.policy.leak_threshold

    def threshold_crossed(self) -> Leak | None:
        """A leak by the coarse rule, once each time the leaks that are out have risen to it; asked when one is found.

        Not those that are merely busy: how many of them there are in that moment is chance.
        """
        if self._above_threshold or not self.at_threshold(self._leaked_out()):
            return None
        self._above_threshold = True
        self.counts[LeakRule.THRESHOLD] += 1
        return Leak(LeakRule.THRESHOLD, None, 0.0)

    def forget(self) -> None:
        """Empty the books without judging: in a forked child, the parent's checkouts are not ours."""
        self.outstanding.clear()

    @property
    def leaked(self) -> bool:
        """Whether any connection was leaked for certain: collected or unreturned; an overdue one may come back."""
        return any(self.counts[rule] for rule in CERTAIN)

    def _hand_over(self, checkout: Checkout, request: InFlightRequest) -> None:
        del request.checkouts[checkout]
        checkout.request = None
        checkout.holder_name = _background(request)

    def _leaked_out(self) -> int:
        return sum(checkout.rule is not None for checkout in self.outstanding.values())

    def _found(self, rule: LeakRule, checkout: Checkout, now: float) -> Leak:
        self.counts[rule] += 1
        if checkout.rule is None or rule.outranks(checkout.rule):
            checkout.rule = rule
        return Leak(rule, checkout, now - checkout.since)


def _may_be_overdue(checkout: Checkout) -> bool:
    """Whether no rule as strong has applied yet."""
    return checkout.rule is None or checkout.rule is LeakRule.PINNED


def _background(request: InFlightRequest | None) -> str:
    return "a background task" if request is None else f"a background task of {request.route}"


# Groups of holders that are named when a pool is exhausted.
HOLDERS_SHOWN = 5


def who_holds(checkouts: Collection[Checkout], now: float) -> tuple[str, ...]:
    """Who holds these connections, since when, from where: alike ones together, the largest groups first."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for checkout in checkouts:
        sites = call_sites(checkout.stack)
        leaked = "" if checkout.rule is None else f", leaked ({checkout.rule.value})"
        groups.setdefault((checkout.holder, leaked, str(sites[0]) if sites else ""), []).append(now - checkout.since)
    ranked = sorted(groups.items(), key=lambda group: (-len(group[1]), -max(group[1])))
    told = []
    for (holder, leaked, site), ages in ranked[:HOLDERS_SHOWN]:
        where = f", checked out at {site}" if site else ""
        told.append(f"{len(ages)} by {holder}{leaked}, for {max(ages):.3f} s at most{where}")
    if left := sum(len(ages) for _, ages in ranked[HOLDERS_SHOWN:]):
        told.append(f"{left} by others")
    return tuple(told)


def describe(checkout: Checkout, now: float, in_transaction: bool | None = None, pool: str = MAIN_POOL) -> Holding:
    """`checkout` in words. `now` in monotonic seconds; whether it is in a transaction, the shell has to ask."""
    sites = [str(site) for site in call_sites(checkout.stack)]
    return Holding(
        holder=checkout.holder,
        request_id=checkout.request_id,
        age=round(now - checkout.since, 3),
        call_site=sites[0] if sites else "",
        callers=tuple(sites[1:]),
        statement=None if checkout.statement is None else " ".join(checkout.statement.split())[:STATEMENT_SHOWN],
        in_transaction=in_transaction,
        rule=None if checkout.rule is None else checkout.rule.value,
        pool=pool,
    )
