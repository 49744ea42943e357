"""One scenario, run on one backend: the tutorial's walkthrough, mixed load, SIGTERM in the middle of it.

`run` brings back an DemoRun: what the client, the process, the database server, and the backend's own report,
transcript and log say. It judges nothing; `verdict` does.
"""

from __future__ import annotations

import json
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pooldrain_compare.demo import tutorial
from pooldrain_compare.harness.load import LoadClient, LoadResult, Outcome, mixed
from pooldrain_compare.harness.processes import Ended
from pooldrain_compare.harness.servers import Backend
from pooldrain_compare.harness.witness import Left, Witness

CLIENTS = 40
SECONDS = 4.0  # of load before the signal

# Bounds, in seconds: reached only when something is wrong.
END_TIMEOUT = 60.0
LOAD_TIMEOUT = 15.0
SESSIONS_TIMEOUT = 3.0
IN_FLIGHT_TIMEOUT = 10.0
_LOOK = 0.05  # how often the load is looked at for the progress display

Progress = Callable[[str, float], None]  # what is done now, and how much of all (0 to 1) has been done


@dataclass(frozen=True, slots=True)
class Orders:
    """The orders as the client remembers them against those in the table."""

    acknowledged: int
    stored: int
    missing: tuple[str, ...]  # acknowledged, and not there
    repeated: tuple[str, ...]  # there more than once
    unwanted: tuple[str, ...]  # there, although refused, not sent, or never ordered

    @classmethod
    def compare(cls, load: LoadResult, table: Counter[str]) -> Orders:
        """Compare what was answered with what is in the table."""
        acknowledged = load.orders(Outcome.ANSWERED)
        # What was lost may be there or not: its client was told nothing.
        allowed = {*acknowledged, *load.orders(Outcome.LOST), *_answered_otherwise(load)}
        return cls(
            acknowledged=len(acknowledged),
            stored=sum(table.values()),
            missing=tuple(sorted(set(acknowledged) - set(table))),
            repeated=tuple(sorted(order for order, count in table.items() if count > 1)),
            unwanted=tuple(sorted(set(table) - allowed)),
        )


def _answered_otherwise(load: LoadResult) -> list[str]:
    return [
        e.order
        for e in load.exchanges
        if e.order is not None and e.outcome is Outcome.ANSWERED and e.status not in (200, 201)
    ]


@dataclass(frozen=True, slots=True)
class DemoRun:
    """Everything that was seen of one backend."""

    backend: Backend
    pages: list[tutorial.Page]
    load: LoadResult
    signal_at: float
    in_flight_seen: int  # requests the client was waiting for when it sent the signal
    ended: Ended
    left: Left
    orders: Orders
    report: dict[str, Any]
    transcript: list[dict[str, Any]]
    log: list[dict[str, Any]]
    stray: list[str]  # lines of output that are not records of the JSON log

    @property
    def answer_to_end(self) -> float:
        """Seconds from the last answer the client read to the end of the process."""
        last = self.load.last_answer
        return self.ended.at - (self.signal_at if last is None else max(last, self.signal_at))


def run(
    backend: Backend,
    url: str,
    directory: Path,
    witness: Witness,
    progress: Progress,
    *,
    clients: int,
    seconds: float,
) -> DemoRun:
    """Run the scenario; raises ServerProcessError or TimeoutError when the backend does not start or does not end."""
    prefix = f"{backend.name}-{uuid.uuid4().hex[:12]}"
    progress("starting", 0.0)
    with backend.process(url, directory) as process:
        progress("walking through the tutorial", 0.15)
        pages = tutorial.walk(process.address)
        load = LoadClient(process.address, mixed(prefix), clients=clients).start()
        try:
            _let_it_run(load, seconds, progress)
            in_flight = load.in_flight
            signal_at = process.signal(signal.SIGTERM)
            progress(f"SIGTERM sent, {in_flight} requests in flight: draining", 0.9)
            ended = process.wait(END_TIMEOUT)
            left = witness.await_none(backend.sessions, SESSIONS_TIMEOUT)
            result = load.join(LOAD_TIMEOUT)
        finally:
            load.stop()
    progress("asking the database", 0.95)
    try:
        orders = Orders.compare(result, witness.orders(prefix))
    finally:
        witness.remove_orders(prefix)
    records, stray = _records(process.log_lines())
    transcript = backend.transcript(directory)
    return DemoRun(
        backend=backend,
        pages=pages,
        load=result,
        signal_at=signal_at,
        in_flight_seen=in_flight,
        ended=ended,
        left=left,
        orders=orders,
        report=_report(backend.report(directory)),
        transcript=_records(transcript.read_text("utf-8").splitlines())[0] if transcript.exists() else [],
        log=records,
        stray=stray,
    )


def _let_it_run(load: LoadClient, seconds: float, progress: Progress) -> None:
    started = time.monotonic()
    while load.running:
        passed = time.monotonic() - started
        # The signal has to come mid-load; with few clients that may take a moment longer.
        if passed >= seconds and (load.in_flight or passed >= seconds + IN_FLIGHT_TIMEOUT):
            break
        share = 0.2 + 0.7 * min(1.0, passed / seconds)
        progress(f"under load: {load.answered} answered, {load.in_flight} in flight", share)
        time.sleep(_LOOK)


def _records(lines: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """JSON objects, and the lines that are none."""
    records, stray = [], []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            stray.append(line)
    return records, stray


def _report(path: Path) -> dict[str, Any]:
    """The backend's report; empty when there is none."""
    try:
        report: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}
