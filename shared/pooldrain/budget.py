"""The connection budget: what a fleet may open, and what its database has room for.

Source: PostgreSQL, "Connections and Authentication" (max_connections, reserved_connections,
superuser_reserved_connections), CREATE ROLE and CREATE DATABASE (CONNECTION LIMIT, which no superuser is held to).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is to run. `surge`: instances more while a rolling restart goes on; `recycles`: workers are replaced."""

    instances: int = 1
    workers: int = 1
    pool_size: int = 10
    max_overflow: int = 20
    surge: int = 1
    recycles: bool = False

    @property
    def each(self) -> int:
        """Connections that one process may have."""
        return self.pool_size + self.max_overflow

    @property
    def most_processes(self) -> int:
        """Processes at the worst moment: in a rolling restart, while each instance replaces a worker."""
        return (self.instances + self.surge) * (self.workers + self.recycles)

    def needs(self) -> dict[str, int]:
        """Connections, by the occasion, from the least to the most."""
        processes = self.instances * self.workers
        surging = (self.instances + self.surge) * self.workers
        found = {
            "kept open (pool-size)": processes * self.pool_size,
            "at most (with max-overflow)": processes * self.each,
        }
        if self.surge:
            found[f"at most, while {_more(self.surge)}"] = surging * self.each
        if self.recycles:
            found["at most, while a worker of each instance is replaced, too"] = self.most_processes * self.each
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a database server has for one user and one database. Limits are None where there is none."""

    version: str
    user: str
    superuser: bool
    database: str
    max_connections: int
    reserved: int  # of these, not for this user
    role_limit: int | None
    database_limit: int | None
    others: Mapping[str, int] = field(default_factory=dict)  # sessions of others now, by who they are
    others_of_role: int = 0
    others_of_database: int = 0

    @property
    def limits(self) -> dict[str, int]:
        """What each limit leaves for us, by its name."""
        found = {f"max_connections {self.max_connections}": self.max_connections - self.reserved - self.used}
        if self.superuser:
            return found
        if self.role_limit is not None:
            found[f"the limit of the role {self.user}, {self.role_limit}"] = self.role_limit - self.others_of_role
        if self.database_limit is not None:
            left = self.database_limit - self.others_of_database
            found[f"the limit of the database {self.database}, {self.database_limit}"] = left
        return found

    @property
    def used(self) -> int:
        """Sessions of others now."""
        return sum(self.others.values())

    @property
    def tightest(self) -> tuple[str, int]:
        """The limit that leaves the least, and what it leaves."""
        return min(self.limits.items(), key=lambda limit: limit[1])


@dataclass(frozen=True, slots=True)
class Line:
    """One occasion: connections needed, and how many of them there is no room for."""

    occasion: str
    needed: int
    too_many: int


def verdict(fleet: Fleet, room: Room) -> list[Line]:
    """Each occasion, and whether it fits."""
    _, left = room.tightest
    return [Line(occasion, needed, max(0, needed - left)) for occasion, needed in fleet.needs().items()]


def what_fits(fleet: Fleet, room: Room) -> str:
    """A pool with which the same processes would fit, as options; or what else to do."""
    _, left = room.tightest
    each = left // fleet.most_processes
    if each < 1:
        return "no pool is small enough: fewer instances or workers, a higher limit, or a pooler (PgBouncer)"
    kept = min(fleet.pool_size, each)
    return f"--pool-size {kept} --max-overflow {each - kept}"


def shortage(most: int, room: Room) -> str | None:
    """What is wrong, in one line, if a service that may open `most` connections has no room for them; else None."""
    limit, left = room.tightest
    if most <= left:
        return None
    if limit.startswith("max_connections"):
        limit += f", {room.reserved} of them reserved" if room.reserved else ""
        limit += f", {room.used} used by others" if room.used else ""
    return (
        f"may open {most} connections and the database has room for {max(0, left)} ({limit}); beyond that requests "
        "wait; see `pooldrain plan`"
    )


def _more(instances: int) -> str:
    return "1 more instance starts" if instances == 1 else f"{instances} more instances start"
