"""Many trials from one seed, a few at a time, and what came of them."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pooldrain.errors import describe_error
from pooldrain_compare.chaos.invariants import broken_invariants
from pooldrain_compare.chaos.plan import FAULT_NAMES, Plan, draw
from pooldrain_compare.chaos.trial import Evidence, run
from pooldrain_compare.harness.faults.private_server import PrivateServers
from pooldrain_compare.harness.load import Outcome
from pooldrain_compare.harness.servers import BACKENDS


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What came of one trial."""

    plan: Plan
    broken: list[str]
    code: int | None  # of the exit; None: it had to be killed
    seconds: float  # from the first signal to the end
    requests: Counter[Outcome]
    orders: int  # that were acknowledged
    cut: int

    @property
    def spare(self) -> float:
        """Seconds of the grace period that were left; negative if it took longer."""
        return self.plan.grace_period - self.seconds


@dataclass(slots=True)
class Campaign:
    """What came of all."""

    seed: int
    results: list[TrialResult] = field(default_factory=list)

    @property
    def broken(self) -> list[TrialResult]:
        """Trials in which an invariant was broken, in order."""
        return sorted((v for v in self.results if v.broken), key=lambda v: v.plan.number)

    @property
    def slowest(self) -> TrialResult | None:
        """The one that used the most of its grace period; how long a start takes, is another matter."""
        return min((v for v in self.results if not v.plan.early), key=lambda v: v.spare, default=None)


Told = Callable[[TrialResult], None]


def run_campaign(
    seed: int, numbers: Sequence[int], told: Told, *, directory: Path, jobs: int = 1, keep: bool = False
) -> Campaign:
    """Run these trials. Artefacts of those that break an invariant stay in `directory`; with `keep`, of all."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job: its services would inherit that, and miss a SIGINT that comes before their handlers.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    campaign = Campaign(seed)
    with PrivateServers() as servers, ThreadPoolExecutor(jobs) as pool:
        waiting: Iterator[int] = iter(numbers)
        running = {pool.submit(try_out, seed, number, servers, directory, keep) for number in _first(waiting, jobs)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for each in done:
                    campaign.results.append(each.result())
                    told(campaign.results[-1])
                    running |= {
                        pool.submit(try_out, seed, number, servers, directory, keep) for number in _first(waiting, 1)
                    }
        finally:
            pool.shutdown(cancel_futures=True)  # those that run take back their faults first
    return campaign


def _first(numbers: Iterator[int], count: int) -> list[int]:
    return [number for _, number in zip(range(count), numbers, strict=False)]


def try_out(seed: int, number: int, servers: PrivateServers, directory: Path, keep: bool) -> TrialResult:
    """Run one trial and judge it; one that the harness itself stumbles over counts as broken."""
    plan = draw(seed, number)
    place = directory / f"trial-{number}"
    shutil.rmtree(place, ignore_errors=True)  # of an earlier run that was kept
    evidence: Evidence | None = None
    try:
        with servers.borrow() as server:
            evidence = run(plan, server, place)
        broken = broken_invariants(evidence)
    except Exception as error:  # noqa: BLE001 - whatever it is, the trial that brings it about is wanted
        broken = [f"harness: {describe_error(error)}"]
    result = _result_of(plan, evidence, broken)
    if broken or keep:
        _leave(place, result, evidence)
    else:
        shutil.rmtree(place, ignore_errors=True)
    return result


def _result_of(plan: Plan, evidence: Evidence | None, broken: list[str]) -> TrialResult:
    if evidence is None:
        return TrialResult(plan, broken, None, 0.0, Counter(), 0, 0)
    return TrialResult(
        plan=plan,
        broken=broken,
        code=None if evidence.ended is None else evidence.ended.code,
        seconds=evidence.seconds,
        requests=Counter(exchange.outcome for exchange in evidence.load.exchanges),
        orders=len(evidence.load.orders(Outcome.ANSWERED)),
        cut=sum(record.get("event") == "request_cut" for record in evidence.transcript if isinstance(record, dict)),
    )


def _leave(place: Path, result: TrialResult, evidence: Evidence | None) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "plan.json").write_text(json.dumps(result.plan.as_dict(), indent=1) + "\n", "utf-8")
    lines = [result.plan.title, f"exit code {result.code} after {result.seconds:.3f} s", *result.broken]
    if evidence is not None:
        lines += ["", "requests:"]
        lines += [
            f"  {e.identity} {e.route} {e.outcome.value} {e.status or ''} {e.reason or e.detail}"
            for e in evidence.load.exchanges
        ]
        lines += ["", "orders in the table:", *(f"  {row}" for row in evidence.rows)]
    (place / "verdict.txt").write_text("\n".join([*lines, ""]), "utf-8")


# --- what is told -----------------------------------------------------------------------------------------------


def tell_broken(console: Console, result: TrialResult, directory: Path) -> None:
    """A trial that broke an invariant: how to run it again, and what was wrong."""
    plan = result.plan
    console.print(
        f"BROKEN: {plan.title}; again: --seed {plan.seed} --only {plan.number}; artefacts: "
        f"{directory / f'trial-{plan.number}'}",
        markup=False,
    )
    for broken in result.broken:
        console.print(f"    {broken}", markup=False)


def tell(console: Console, campaign: Campaign) -> None:
    """Counts by fault and server, the slowest exit, and the result."""
    table = Table(title=f"Chaos, seed {campaign.seed}: trials by fault and server", title_justify="left")
    table.add_column("fault")
    for server in (*BACKENDS, "all"):
        table.add_column(server, justify="right", overflow="fold")
    for fault in FAULT_NAMES:
        table.add_row(fault, *_cells([v for v in campaign.results if v.plan.fault == fault]))
    table.add_section()
    table.add_row("all", *_cells(campaign.results))
    console.print(table)
    codes = Counter(v.code for v in campaign.results)
    requests = sum((v.requests for v in campaign.results), Counter[Outcome]())
    lines = [
        "Exit codes: " + ", ".join(f"{code} × {codes[code]}" for code in sorted(codes, key=str)),
        "Requests: "
        + ", ".join(f"{requests[outcome]} {outcome.value.replace('_', ' ')}" for outcome in Outcome)
        + f"; {sum(v.cut for v in campaign.results)} cut by the services",
        f"Orders acknowledged, each once in its table: {sum(v.orders for v in campaign.results)}",
    ]
    if (slowest := campaign.slowest) is not None:
        lines.append(
            f"Slowest exit: {slowest.seconds:.3f} s of a grace period of {slowest.plan.grace_period:.3f} s "
            f"({slowest.plan.title})"
        )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    bad = campaign.broken
    trials = f"{len(campaign.results)} trials of seed {campaign.seed}"
    if bad:
        numbers = ", ".join(str(v.plan.number) for v in bad)
        console.print(f"Verdict: BROKEN in {len(bad)} of {trials}: {numbers}", style="bold red", markup=False)
    else:
        console.print(f"Verdict: no invariant was broken in {trials}", style="bold green", markup=False)


def _cells(results: list[TrialResult]) -> list[str]:
    cells = [[v for v in results if v.plan.server == server] for server in BACKENDS]
    return [_cell(each) for each in (*cells, results)]


def _cell(results: list[TrialResult]) -> str:
    broken = sum(bool(v.broken) for v in results)
    return f"{len(results)}" + (f" ({broken} broken)" if broken else "")
