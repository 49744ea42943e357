"""Faults of a database, by name: each can be applied while a service uses it, and is taken back in any case.

A fault hits the network between the two (see `proxy`), or the server itself (see `private_server`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sqlalchemy.engine import make_url

from pooldrain_compare.harness.faults.private_server import PrivateServer
from pooldrain_compare.harness.faults.proxy import Proxy

LATENCY = 2.0  # seconds


class Place:
    """A database of a private server, reached through a proxy; what was done to it is taken back at the end."""

    def __init__(self, server: PrivateServer) -> None:
        self.server = server
        self.own_url = ""  # for who looks on; straight to the server, as its superuser
        self.url = ""  # for the service
        self._direct_url = ""
        self._applied: list[Fault] = []

    def __enter__(self) -> Self:
        self._direct_url = self.server.make_database()
        self.own_url = self.server.superuser_url(self._direct_url)
        self.proxy = Proxy(self._direct_url).__enter__()
        self.url = self.proxy.through(self._direct_url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.take_back()
        finally:
            self.proxy.__exit__(None, None, None)
        self.server.drop_database(self._direct_url)

    @property
    def name(self) -> str:
        """The database's name."""
        return str(make_url(self.own_url).database)

    @property
    def troubled(self) -> bool:
        """Whether a fault is in force."""
        return any(fault.lasts for fault in self._applied)

    def apply(self, fault: Fault) -> None:
        """Let it happen."""
        self._applied.append(fault)
        fault.apply(self)

    def take_back(self) -> None:
        """Undo what was done, the last first. The server accepts connections again when this returns."""
        while self._applied:
            self._applied.pop().take_back(self)

    def sessions(self, *, idle: bool = False) -> list[int]:
        """The server's processes that serve a service: all, or those that wait for the next query."""
        rows = self.server.ask_in(
            self.own_url,
            "SELECT pid, state FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name LIKE 'pooldrain:%'",
        )
        return [pid for pid, state in rows if not idle or state == "idle"]


def _nothing(place: Place) -> None:
    pass


def _restore(place: Place) -> None:
    place.proxy.restore()


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a database. `lasts`: it does until it is taken back; else it is over at once."""

    name: str
    what: str
    apply: Callable[[Place], None]
    take_back: Callable[[Place], None] = _nothing

    @property
    def lasts(self) -> bool:
        """Whether it goes on until it is taken back."""
        return self.take_back is not _nothing


def _crash(place: Place) -> None:
    for pid in place.sessions():
        if place.server.kill_backend(pid):  # else it has ended since it was listed: the next one will do
            return


def _refuse(place: Place) -> None:
    place.proxy.refuse()
    place.proxy.reset()


def _limit(place: Place) -> None:
    place.server.ask(f"ALTER DATABASE {place.name} CONNECTION LIMIT 0")


def _unlimit(place: Place) -> None:
    place.server.ask(f"ALTER DATABASE {place.name} CONNECTION LIMIT -1")


def _fail_over(place: Place) -> None:
    place.server.ask(f"ALTER DATABASE {place.name} SET default_transaction_read_only = on")
    place.proxy.reset()


def _fail_back(place: Place) -> None:
    place.server.ask(f"ALTER DATABASE {place.name} RESET default_transaction_read_only")
    place.proxy.reset()


def _end_idle(place: Place) -> None:
    for pid in place.sessions(idle=True):
        place.server.ask("SELECT pg_terminate_backend(%s, 5000)", pid)


def _cut_idle(place: Place) -> None:
    place.proxy.cut_idle()


RESTARTED = Fault("restarted", "the server is restarted, sessions end without a word", lambda p: p.server.restart())
KILLED = Fault(
    "killed", "the server is killed, and stays down", lambda p: p.server.kill(), lambda p: p.server.restart()
)
CRASHED = Fault(
    "crashed", "a session's process is killed: all end, the server recovers", _crash, lambda p: p.server.await_ready()
)
FROZEN = Fault("frozen", "the server's processes stand still", lambda p: p.server.freeze(), lambda p: p.server.thaw())
REFUSED = Fault("refused", "connections are reset, and new ones refused", _refuse, _restore)
TOO_MANY = Fault("too-many", "the server takes no more connections; those that are open stay", _limit, _unlimit)
RESET = Fault("reset", "every connection is reset, in mid-query too", lambda p: p.proxy.reset())
BLACK_HOLE = Fault(
    "black-hole", "nothing gets through any more, in neither direction", lambda p: p.proxy.black_hole(), _restore
)
SLOW = Fault("slow", f"the server's answers take {LATENCY:g} s longer", lambda p: p.proxy.delay(LATENCY), _restore)
IDLE_KILLED = Fault("idle-killed", "the server ends the sessions that are idle", _end_idle)
IDLE_CUT = Fault("idle-cut", "something on the way cuts the connections that are idle", _cut_idle)
READ_ONLY = Fault("read-only", "a failover to a server that takes no writes", _fail_over, _fail_back)

FAULTS = (
    RESTARTED, KILLED, CRASHED, FROZEN, REFUSED, TOO_MANY, RESET, BLACK_HOLE, SLOW, IDLE_KILLED, IDLE_CUT, READ_ONLY,
)  # fmt: skip
BY_NAME = {fault.name: fault for fault in FAULTS}
