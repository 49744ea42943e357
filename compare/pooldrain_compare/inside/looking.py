"""Throughput of one server without the admin listener, with it, and with it scraped; slices of load in turn."""

from __future__ import annotations

import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pooldrain_compare.bench.contenders import CONTENDERS, Ours
from pooldrain_compare.harness.load import LoadClient, Mode, constant
from pooldrain_compare.harness.processes import ServerProcess

WITHOUT, UNREAD, SCRAPED = "without", "with", "scraped"
KINDS = (WITHOUT, UNREAD, SCRAPED)

CASES = {"nothing": "/ping", "read": "/db-test"}  # what is asked for
CLIENTS = 16
SCRAPE_PAUSE = 1.0  # seconds
WARM = 0.2  # seconds of a slice that do not count
JOIN_TIMEOUT = 30.0


@dataclass(slots=True)
class Looked:
    """Requests a second of one server in one case, a sample for each round, by kind."""

    server: str
    case: str
    samples: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def ratio(self, kind: str) -> float:
        """To the one without, of the same round; the median of the rounds."""
        pairs = zip(self.samples[kind], self.samples[WITHOUT], strict=True)
        return statistics.median(mine / without for mine, without in pairs)


def look(
    servers: tuple[str, ...], url: str, directory: Path, *, rounds: int, seconds: float, say: Callable[[str], object]
) -> list[Looked]:
    """Measure these, each in each case; `seconds` of load a slice."""
    found = []
    for server in servers:
        with ExitStack() as stack:
            running = {kind: stack.enter_context(_process(server, kind, url, directory / server)) for kind in KINDS}
            for case, target in CASES.items():
                say(f"inside: {server}, {case}")
                looked = Looked(server, case)
                for number in range(rounds):
                    for kind in KINDS if number % 2 else KINDS[::-1]:
                        looked.samples[kind].append(_slice(running[kind], kind, target, seconds))
                found.append(looked)
    return found


def _process(server: str, kind: str, url: str, directory: Path) -> ServerProcess:
    contender = CONTENDERS[server]
    assert isinstance(contender, Ours), "nobody else has such a listener"
    place = directory / kind
    place.mkdir(parents=True)
    admin = ("--admin", "off" if kind == WITHOUT else "127.0.0.1:0")
    return contender.backend.process(url, place, "--app", contender.app, *admin, observed=False)


def _slice(process: ServerProcess, kind: str, target: str, seconds: float) -> float:
    """Requests that were answered in a second."""
    with _scraping(process) if kind == SCRAPED else ExitStack():
        load = LoadClient(process.address, constant(target), clients=CLIENTS, modes=(Mode.KEEP_ALIVE,)).start()
        try:
            time.sleep(WARM)
            began = time.monotonic()
            time.sleep(seconds)
            ended = time.monotonic()
        finally:
            load.stop()
        exchanges = load.join(JOIN_TIMEOUT).exchanges
    return sum(began <= each.ended_at <= ended and each.status == 200 for each in exchanges) / (ended - began)


@contextmanager
def _scraping(process: ServerProcess) -> Generator[None]:
    """As Prometheus does: all the metrics, each second, beginning at once."""
    over = threading.Event()

    def scrape() -> None:
        while True:
            with urllib.request.urlopen(f"{process.admin}/metrics", timeout=JOIN_TIMEOUT) as answer:  # noqa: S310 - http
                answer.read()
            if over.wait(SCRAPE_PAUSE):
                return

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        yield
    finally:
        over.set()
        scraper.join()
