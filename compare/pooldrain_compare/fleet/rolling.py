"""One rolling restart: instances behind a proxy, load through it, each instance restarted in turn."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from pooldrain_compare.fleet.contenders import Contender
from pooldrain_compare.fleet.proxies import BACKS, Proxy
from pooldrain_compare.fleet.table import executed
from pooldrain_compare.harness.load import LoadClient, Outcome, Request, Workload, order
from pooldrain_compare.harness.processes import ServerProcess, free_port

CLIENTS = 8  # half of them keep their connections
SETTLED = 1.2  # seconds from an instance's start until the proxy uses it: two of its checks, or its fail_timeout
STOPPED = 30.0  # seconds in which an instance ends
ENDED = 75.0  # seconds in which the load ends


@dataclass(frozen=True, slots=True)
class FleetResult:
    """What the clients saw of one rolling restart, and the database."""

    contender: Contender
    proxy: str
    restarts: int
    requests: int
    not_2xx: int
    lost: int  # without a whole answer, or not even sent
    twice: int  # orders that were executed more than once
    missing: int  # orders that were acknowledged, and not executed
    exit_codes: tuple[int, ...]  # of the instances, each once
    reasons: tuple[str, ...]  # what the losses were

    @property
    def clean(self) -> bool:
        """Whether nobody noticed."""
        return not (self.not_2xx or self.lost or self.twice or self.missing) and self.exit_codes == (0,)


def restart_all(contender: Contender, proxy: Proxy, url: str, directory: Path, rounds: int) -> FleetResult:
    """Restart each of the instances `rounds` times, under load; what came of it.

    `url` as libpq takes it; its table is made already. Raises StartupError or ServerProcessError.
    """
    ports = [free_port() for _ in BACKS]
    front = free_port()
    database = make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    name = f"{contender.name}-{proxy.name}"

    def instance(index: int, generation: int) -> ServerProcess:
        return ServerProcess(
            contender.argv(ports[index]),
            log=directory / f"{name}-{index}-{generation}.log",
            address=("127.0.0.1", ports[index]),
            environment={"DATABASE_URL": database},
        )

    with ExitStack() as started:
        serving = [started.enter_context(instance(index, 0)) for index in range(len(ports))]
        address = ("127.0.0.1", front)
        proxying = ServerProcess(
            proxy.argv(front, ports, directory), log=directory / f"{name}-proxy.log", address=address
        )
        started.enter_context(proxying)
        load = LoadClient(address, _workload(name), clients=CLIENTS).start()
        codes = set()
        for generation, index in itertools.product(range(1, rounds + 1), range(len(ports))):
            time.sleep(SETTLED)
            serving[index].signal()
            codes.add(serving[index].wait(STOPPED).code)
            serving[index] = started.enter_context(instance(index, generation))
        time.sleep(SETTLED)
        load.stop()
        result = load.join(ENDED)
    acknowledged = result.orders(Outcome.ANSWERED)
    sent = [exchange.order for exchange in result.exchanges if exchange.order is not None]
    done, _ = executed(url, acknowledged)
    return FleetResult(
        contender,
        proxy.name,
        restarts=rounds * len(ports),
        requests=len(result.exchanges),
        not_2xx=sum(number for status, number in result.statuses.items() if not 200 <= status < 300),
        lost=result.count(Outcome.LOST) + result.count(Outcome.NOT_SENT),
        twice=executed(url, sent)[1],
        missing=len(acknowledged) - done,
        exit_codes=tuple(sorted(codes)),
        reasons=tuple(f"{number} x {reason}" for reason, number in result.reasons.most_common(3)),
    )


def _workload(prefix: str) -> Workload:
    work = Request("GET", "/work", "GET /work")

    def requests(client: int) -> Iterator[Request]:
        for number in itertools.count():
            yield order(f"{prefix}-{client}-{number}") if number % 2 else work

    return requests
