"""What the drivers need to be told and asked, for psycopg and SQLite, in both colours."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from pooldrain.in_flight import InFlightRequest
from pooldrain.policy import PoolPolicy
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.drivers import is_busy, shut_down_socket
from pooldrain.sqla.tracker import TrackedPool

WAIT_STEP = 0.01  # seconds between two chances to interrupt
PROBES = 2  # unanswered keepalives after which a connection is dead
CLIENT_CHECK = 2.0  # seconds between two looks of PostgreSQL, while a query runs, whether its client is still there


def connect_options(url: DatabaseUrl, policy: PoolPolicy, service: str) -> Callable[..., None]:
    """A listener for SQLAlchemy's `do_connect` that fills in what the URL leaves open.

    The application name tells the server which process a session belongs to; it is made at connect time,
    because the pid is another one after a fork.
    """

    def do_connect(dialect: Any, record: Any, cargs: Any, cparams: dict[str, Any]) -> None:
        if url.dialect == "postgresql":
            cparams.setdefault("application_name", f"pooldrain:{service}:{os.getpid()}")
            cparams.setdefault("connect_timeout", max(1, round(policy.connect_timeout)))
            if policy.tcp_timeout is not None:
                _notice_silence(cparams, policy.tcp_timeout)
        else:
            cparams.setdefault("timeout", policy.pool_timeout)  # how long to wait for another writer
            cparams["check_same_thread"] = False  # a pool hands connections from thread to thread

    return do_connect


def _notice_silence(cparams: dict[str, Any], timeout: float) -> None:
    """Have both ends notice within `timeout` seconds that the other is gone; what the URL says comes first.

    Ours: a database whose packets vanish costs a request an error, not the drain. The server's: sessions of a
    process that was killed end, and with them their queries and their locks.
    Sources: libpq, "Parameter Key Words"; PostgreSQL, "Connections and Authentication", TCP settings.
    """
    probe = max(1, round(timeout / (PROBES + 1)))
    for name, value in (("idle", probe), ("interval", probe), ("count", PROBES)):
        cparams.setdefault(f"keepalives_{name}", value)
    milliseconds = round(timeout * 1000)
    cparams.setdefault("tcp_user_timeout", milliseconds)
    check = round(min(CLIENT_CHECK, timeout) * 1000)
    settings = {
        "tcp_keepalives_idle": probe,
        "tcp_keepalives_interval": probe,
        "tcp_keepalives_count": PROBES,
        "tcp_user_timeout": milliseconds,
        "client_connection_check_interval": check,
    }
    ours = " ".join(f"-c {name}={value}" for name, value in settings.items())
    cparams["options"] = f"{ours} {cparams.get('options', '')}".strip()


def add_wait_function(dbapi_connection: Any, record: object = None) -> None:
    """A `connect` listener that gives SQLite what the demo's `/work` query calls: a wait, in interruptible steps."""

    def wait(seconds: float, step: int) -> bool:
        time.sleep(min(WAIT_STEP, seconds))
        return step * WAIT_STEP < seconds

    dbapi_connection.create_function("pooldrain_wait", 2, wait)


def startup_problem(url: DatabaseUrl, error: Exception, what: str = "cannot connect to") -> str:
    """Why the database cannot be used, in one line, with the password masked."""
    reason = " ".join(str(getattr(error, "orig", None) or error).split())
    return f"{what} {url.masked}: {url.mask(reason)}"


def cut_off(pool: TrackedPool, requests: Iterable[InFlightRequest]) -> int:
    """End, from outside, the connections on which these requests wait for the database; how many there were.

    For a database that does not answer: no cancellation reaches it, and what waits for it has to unwind.
    """
    return sum(shut_down_socket(driver) for driver in pool.drivers(requests) if is_busy(driver))


def end_in_transit(pool: TrackedPool) -> int:
    """End, from outside, the connections that somebody is still testing, resetting or closing; how many."""
    ended = 0
    for record in pool.in_transit():
        connection = record.dbapi_connection
        if is_busy(record.driver_connection) and shut_down_socket(record.driver_connection):
            pool.tracker.closed_one(connection)
            ended += 1
    return ended
