"""What the process's exit status says, and which of several is the worst."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """How the service has ended; for every command 1 and 2 say the same."""

    DRAINED = 0
    NOT_STARTED = 1
    BAD_CONFIGURATION = 2
    CUT = 3
    DISPOSE_FAILED = 4
    LEAKED = 5
    DOES_NOT_FIT = 6  # of `pooldrain plan` alone: more connections than the database has


def by_signal(number: int) -> int:
    """What a shell shows of a process that a signal has ended: 128 + its number; so do we at a third signal."""
    return 128 + number


# What a command exits with that is interrupted (SIGINT) before it has a shutdown to perform.
INTERRUPTED = by_signal(2)

# From best to worst; a master of several workers exits with the worst of theirs.
_SEVERITY = (
    ExitCode.DRAINED,
    ExitCode.LEAKED,
    ExitCode.CUT,
    ExitCode.DISPOSE_FAILED,
    ExitCode.BAD_CONFIGURATION,
    ExitCode.NOT_STARTED,
)


def worst_exit_code(codes: Iterable[int]) -> int:
    """The worst of several exit codes; one we do not know (a crash, a kill) is worse than any we do."""

    def severity(code: int) -> int:
        return _SEVERITY.index(ExitCode(code)) if code in _SEVERITY else len(_SEVERITY)

    return max(codes, key=severity, default=int(ExitCode.DRAINED))
