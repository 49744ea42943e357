"""The leak rules, strongest first: why a checkout counts as leaked. `ledger` finds what they apply to.

- `collected`: the garbage collector found the connection; nobody can return it any more.
- `unreturned`: the request that checked it out has ended and it is still out. No threshold, no false alarm.
- `overdue`: held longer than `leak_age` seconds (off by default, as HikariCP's leakDetectionThreshold).
- `pinned`: its request's answer has begun, and it idles in a transaction while the client reads: it ran nothing
  between two looks a second apart. Not for who queries while it streams.
- `threshold`: `checkedout >= leak_threshold`, the tutorial's coarse rule, kept as a flag; told when so many leaked.
"""

from __future__ import annotations

from enum import StrEnum


class LeakRule(StrEnum):
    """Why a checkout counts as leaked."""

    COLLECTED = "collected"
    UNRETURNED = "unreturned"
    OVERDUE = "overdue"
    PINNED = "pinned"
    THRESHOLD = "threshold"

    def outranks(self, other: LeakRule) -> bool:
        """Whether it is the stronger of two that apply."""
        return _STRENGTH.index(self) > _STRENGTH.index(other)


# From the weakest to the strongest.
_STRENGTH = (LeakRule.THRESHOLD, LeakRule.PINNED, LeakRule.OVERDUE, LeakRule.UNRETURNED, LeakRule.COLLECTED)

# Those that leave no doubt: nobody can, or nobody will, return the connection. An overdue one may come back.
CERTAIN = (LeakRule.COLLECTED, LeakRule.UNRETURNED)
