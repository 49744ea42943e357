"""The pool's numbers, and the page `/pool-status` that shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pooldrain.leak_rules import LeakRule
from pooldrain.ledger import Holding
from pooldrain.phases import Phase


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The pool's numbers, as the tutorial prints them."""

    pool_size: int  # connections the pool keeps
    checkedout: int  # connections out of the pool
    overflow: int  # connections open beyond pool_size
    idle: int  # open connections in the pool

    def as_dict(self) -> dict[str, int]:
        """JSON-ready, in the tutorial's order."""
        return asdict(self)


def pool_status_page(status: PoolStatus, *, connection_leak: bool, accepting: bool, active: int) -> dict[str, Any]:
    """`/pool-status`: exactly the tutorial's keys."""
    return {
        "pool_status": status.as_dict(),
        "connection_leak": connection_leak,
        "requests": {"accepting": accepting, "active": active},
    }


def pool_status_detail(holdings: Iterable[Holding], leaks: Mapping[LeakRule, int], phase: Phase) -> dict[str, Any]:
    """What `?detail=1` adds: every outstanding checkout by holder, and the leak counters."""
    return {
        "phase": phase.value,
        "checkouts": [holding.as_dict() for holding in holdings],
        "leaks": {rule.value: count for rule, count in leaks.items()},
    }
