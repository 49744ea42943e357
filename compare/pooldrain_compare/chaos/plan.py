"""What happens in a trial, drawn from a seed: trial k of seed S is the same trial whenever it is run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from pooldrain.policy import ShutdownPolicy
from pooldrain_compare.chaos.onlookers import KINDS
from pooldrain_compare.chaos.rude import MANNERS, VISITORS
from pooldrain_compare.harness.faults.catalogue import FAULTS
from pooldrain_compare.harness.load import Request, order
from pooldrain_compare.harness.servers import BACKENDS

NO_FAULT = "none"
FAULT_NAMES = (NO_FAULT, *(fault.name for fault in FAULTS))
HUNG_MS = 600_000  # a query that outlasts everything
# The demo, with an engine that the application makes itself.
_APPS = {
    "pooldrain_sync": "pooldrain_compare.parity.app.threads",
    "pooldrain_async": "pooldrain_compare.parity.app.loop",
}
READS = ("/", "/db-test", "/orders/count")

Workload = Callable[[int], Iterator[Request]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One trial. Instants are seconds after the load has begun."""

    seed: int
    number: int
    server: str
    early: bool  # signals and fault come while it starts; there is no load, and instants count from the start
    settled: bool  # the load begins when every worker listens, not just the first
    options: tuple[str, ...]
    grace_period: float  # seconds, that these options sum up to
    clients: int
    hung: int  # of those, how many ask for a query that does not end
    leaks: tuple[str, ...]  # what is asked before the load, to leak connections
    rude: tuple[str, ...]  # clients that misbehave, by their manners
    onlookers: tuple[str, ...]  # who looks inside, by kind
    fault: str
    fault_at: float
    fault_lasts: float | None  # seconds; None: until the service has ended
    signals: tuple[tuple[float, str], ...]
    noise: tuple[tuple[float, str], ...] = ()  # signals that mean nothing, to its first process, before the others

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @property
    def title(self) -> str:
        """For people."""
        when = " during its start" if self.early else ""
        return f"trial {self.number} of seed {self.seed}: {self.server}{when}, {self.fault}"


def draw(seed: int, number: int) -> Plan:
    """Trial `number` of this seed."""
    dice = random.Random(f"{seed}/{number}")  # noqa: S311 - the same trial every time
    policy = ShutdownPolicy(
        announce_period=dice.choice((0.0, 0.0, 0.0, 0.2)),
        drain_timeout=round(dice.uniform(0.2, 1.0), 2),
        cancel_timeout=dice.choice((0.4, 0.8)),
        teardown_timeout=0.2,
        dispose_timeout=dice.choice((0.4, 0.8)),
    )
    pool_size = dice.randint(1, 5)
    options = {
        "--announce-period": policy.announce_period,
        "--drain-timeout": policy.drain_timeout,
        "--cancel-timeout": policy.cancel_timeout,
        "--teardown-timeout": policy.teardown_timeout,
        "--dispose-timeout": policy.dispose_timeout,
        "--pool-size": pool_size,
        "--max-overflow": dice.randint(0, 3),
        "--min-idle": dice.randint(0, pool_size),
        "--pool-timeout": dice.choice((0.2, 1.0, 10.0)),
        "--connect-timeout": 1,
    }
    early = dice.random() < 0.1
    first = round(dice.uniform(0.0, 1.5) if early else dice.uniform(0.1, 0.7), 3)
    signals = [(first, dice.choice(("SIGTERM", "SIGINT")))]
    while len(signals) < 3 and dice.random() < 0.3:
        signals.append((round(signals[-1][0] + dice.uniform(0.02, 1.0), 3), dice.choice(("SIGTERM", "SIGINT"))))
    noisy = random.Random(f"{seed}/{number}/noise")  # noqa: S311 - the same trial every time, and what was drawn before
    noise = () if early else tuple(_noise(noisy, first) for _ in range(noisy.choice((0, 0, 1, 2))))
    extra = random.Random(f"{seed}/{number}/adopted")  # noqa: S311 - as above
    streams = random.Random(f"{seed}/{number}/streams")  # noqa: S311 - as above
    first_process = random.Random(f"{seed}/{number}/init")  # noqa: S311 - as above
    curious = random.Random(f"{seed}/{number}/onlookers")  # noqa: S311 - as above
    onlookers = () if early else tuple(curious.sample(tuple(KINDS), curious.choice((0, 1, 2, 3))))
    server = dice.choice(tuple(BACKENDS))
    adopts = extra.random() < 0.3  # an engine of the application's own, beside ours
    application = ("--app", f"{_APPS[BACKENDS[server].module]}:create_adopted") if adopts else ()
    return Plan(
        seed=seed,
        number=number,
        server=server,
        early=early,
        settled=dice.random() < 0.8,
        options=(
            *(str(word) for pair in options.items() for word in pair),
            *dice.choice(((), (), ("--no-pre-ping",), ("--pre-ping-idle", "0"), ("--pre-ping-idle", "0.1"))),
            *application,
            *streams.choice(((), (), (), ("--streams", "finish"))),
            *first_process.choice(((), (), (), ("--init", "on"))),
            *(("--admin", "127.0.0.1:0") if onlookers else ("--admin", "off")),
        ),
        grace_period=policy.needed,
        clients=dice.randint(2, 10),
        hung=dice.choice((0, 0, 1, 2)),
        leaks=tuple(
            dice.choice(("/db-test-leak", "/db-test-leak?collect=1")) for _ in range(dice.choice((0, 0, 0, 1, 2)))
        )
        + ("/second-leak",) * (adopts and extra.random() < 0.5),
        rude=tuple(dice.sample(tuple(MANNERS), dice.choice((0, 0, 1, 2))))
        + (tuple(streams.sample(tuple(VISITORS), streams.choice((0, 1, 2)))) if adopts else ()),
        onlookers=onlookers,
        fault=dice.choice(FAULT_NAMES),
        fault_at=round(max(0.0, first + dice.uniform(-0.5, 0.8)), 3),
        fault_lasts=dice.choice((None, round(dice.uniform(0.1, 1.5), 3))),
        signals=tuple(signals),
        noise=tuple(sorted(noise)),
    )


def _noise(dice: random.Random, until: float) -> tuple[float, str]:
    return round(dice.uniform(0.0, until), 3), dice.choice(("SIGUSR1", "SIGUSR2"))


def workload(plan: Plan, prefix: str) -> Workload:
    """What its clients ask, in order; each request has an identity that begins with `prefix`."""

    def requests(client: int) -> Iterator[Request]:
        dice = random.Random(f"{plan.seed}/{plan.number}/{client}")  # noqa: S311 - the same load every time
        number = 0
        while True:
            number += 1
            identity = f"{prefix}-{client}-{number}"
            if client < plan.hung and number == 2:
                yield Request("GET", f"/work?ms={HUNG_MS}", "GET /work", identity=identity)
            elif (kind := dice.random()) < 0.5:
                yield replace(order(identity), identity=identity)
            elif kind < 0.75:
                target = dice.choice(READS)
                yield Request("GET", target, f"GET {target}", identity=identity)
            else:
                yield Request("GET", f"/work?ms={dice.randint(1, 200)}", "GET /work", identity=identity)

    return requests
