"""What is known of each process that serves, and what those had counted that are gone. No I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pooldrain.snapshot import (
    Counters,
    LastShutdown,
    ProcessStatus,
    ServiceStatus,
    added,
    last_shutdown,
    no_counters,
    service_phase,
)


@dataclass(slots=True)
class Gathering:
    """One service's processes, by a name of each that is never given again. `now`: monotonic seconds."""

    service: str
    version: str
    last: LastShutdown | None = None
    living: dict[str, tuple[ProcessStatus, float]] = field(default_factory=dict)  # what each said, and when
    ended: int = 0
    past: Counters = field(default_factory=no_counters)
    final: list[ProcessStatus] = field(default_factory=list)  # of the one that ended last: what is shown if none lives

    def answered(self, name: str, status: ProcessStatus, now: float) -> None:
        """A process has answered."""
        self.living[name] = status, now

    def gone(self, name: str, final: ProcessStatus | None, report: dict[str, Any] | None) -> None:
        """A process has ended; its last words, and its shutdown's report, if it had time for them."""
        told = self.living.pop(name, None)
        self.ended += 1
        if report is not None:
            self.last = last_shutdown(report)
        if (status := final or (told and told[0])) is not None:
            self.past = added([self.past, status["counters"]])
            self.final = [status]

    def document(self, now: float) -> ServiceStatus:
        """The whole service, as `/status` shows it."""
        workers: list[ProcessStatus] = [
            {**status, "seen": round(now - said, 3)} for status, said in self.living.values()
        ]
        shown = sorted(workers, key=lambda worker: worker["pid"]) or self.final
        return {
            "service": self.service,
            "version": self.version,
            "phase": service_phase([worker["phase"] for worker in shown]).value,
            "workers": shown,
            "ended": self.ended,
            "totals": added([self.past, *(status["counters"] for status, _ in self.living.values())]),
            "last_shutdown": self.last,
        }
