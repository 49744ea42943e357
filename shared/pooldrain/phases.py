"""The phases of a service's life, and which may follow which. A move that the table does not have raises."""

from __future__ import annotations

from enum import StrEnum

from pooldrain.errors import PooldrainError


class Phase(StrEnum):
    """Where a service is in its life. Phases only ever go forward, and none is left out."""

    STARTING = "STARTING"
    READY = "READY"
    ANNOUNCING = "ANNOUNCING"
    DRAINING = "DRAINING"
    CANCELLING = "CANCELLING"
    TEARDOWN = "TEARDOWN"
    RECLAIMING = "RECLAIMING"
    DISPOSING = "DISPOSING"
    STOPPING = "STOPPING"
    CLOSED = "CLOSED"


# From each phase to the next; None: before the first.
NEXT: dict[Phase | None, Phase | None] = {
    None: Phase.STARTING,
    Phase.STARTING: Phase.READY,
    Phase.READY: Phase.ANNOUNCING,
    Phase.ANNOUNCING: Phase.DRAINING,
    Phase.DRAINING: Phase.CANCELLING,
    Phase.CANCELLING: Phase.TEARDOWN,
    Phase.TEARDOWN: Phase.RECLAIMING,
    Phase.RECLAIMING: Phase.DISPOSING,
    Phase.DISPOSING: Phase.STOPPING,
    Phase.STOPPING: Phase.CLOSED,
    Phase.CLOSED: None,
}


class PhaseError(PooldrainError, RuntimeError):
    """A phase was entered that does not follow the one before."""


def move(before: Phase | None, phase: Phase) -> Phase:
    """The phase to be in from now on; PhaseError if it does not follow `before`."""
    if NEXT[before] is not phase:
        raise PhaseError(f"{phase.value} does not follow {before.value if before else 'nothing'}")
    return phase
