"""What engines and drivers are told: the pool's policy, the application name, the timeouts of a connection."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from pooldrain.policy import PoolPolicy
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.pooler import Pooler

PROBES = 2  # unanswered keepalives after which a connection is dead
CLIENT_CHECK = 2.0  # seconds between two looks of PostgreSQL, while a query runs, whether its client is still there


def engine_options(policy: PoolPolicy) -> dict[str, Any]:
    """The policy, as `create_engine` and `create_async_engine` take it."""
    return {
        "pool_size": policy.pool_size,
        "max_overflow": policy.max_overflow,
        "pool_timeout": policy.pool_timeout,
        "pool_recycle": policy.pool_recycle,
        "pool_pre_ping": policy.pre_ping,
    }


def connect_options(
    url: DatabaseUrl, policy: PoolPolicy, service: str, pooler: Pooler | None = None
) -> Callable[..., Any]:
    """A listener for SQLAlchemy's `do_connect` that fills in what the URL leaves open.

    The application name tells the server which process a session belongs to; it is made at connect time,
    because the pid is another one after a fork.
    """

    def do_connect(dialect: Any, record: Any, cargs: Any, cparams: dict[str, Any]) -> Any:
        if url.dialect == "postgresql":
            url_options = cparams.get("options")
            cparams.setdefault("application_name", f"pooldrain:{service}:{os.getpid()}")
            cparams.setdefault("connect_timeout", max(1, round(policy.connect_timeout)))
            if policy.tcp_timeout is not None:
                _notice_silence(cparams, policy.tcp_timeout)
            return None if pooler is None else pooler.connect(dialect, cargs, cparams, url_options)
        cparams.setdefault("timeout", policy.pool_timeout)  # how long to wait for another writer
        cparams["check_same_thread"] = False  # a pool hands connections from thread to thread
        return None

    return do_connect


def fill_in_options(engine: Engine, policy: PoolPolicy, service: str) -> Callable[..., None]:
    """A listener for `do_connect` of an engine that an application has made.

    It fills in what the application has left open, and only what concerns the client, or what a connection pooler
    takes: no start-up parameter but the application's name.
    """
    driver = engine.dialect.driver

    def do_connect(dialect: Any, record: Any, cargs: Any, cparams: dict[str, Any]) -> None:
        if cargs:  # a connection string of the dialect's own: what it leaves open is not known
            return
        name = f"pooldrain:{service}:{os.getpid()}"
        if driver in ("psycopg", "psycopg_async", "psycopg2") and engine.dialect.name == "postgresql":
            # libpq's own way to leave the last word to others, PGAPPNAME included.
            cparams.setdefault("fallback_application_name", name)
            if "PGCONNECT_TIMEOUT" not in os.environ:
                cparams.setdefault("connect_timeout", max(1, round(policy.connect_timeout)))
            if policy.tcp_timeout is not None:
                _keep_alive(cparams, policy.tcp_timeout)
        elif driver == "asyncpg":
            cparams["server_settings"] = {"application_name": name, **(cparams.get("server_settings") or {})}
            cparams.setdefault("timeout", policy.connect_timeout)

    return do_connect


def _keep_alive(cparams: dict[str, Any], timeout: float) -> int:
    """Have our end notice within `timeout` seconds that the other is gone; the seconds between two keepalives."""
    probe = max(1, round(timeout / (PROBES + 1)))
    for name, value in (("idle", probe), ("interval", probe), ("count", PROBES)):
        cparams.setdefault(f"keepalives_{name}", value)
    cparams.setdefault("tcp_user_timeout", round(timeout * 1000))
    return probe


def _notice_silence(cparams: dict[str, Any], timeout: float) -> None:
    """Have both ends notice within `timeout` seconds that the other is gone; what the URL says comes first.

    Ours: a database whose packets vanish costs a request an error, not the drain. The server's: sessions of a
    process that was killed end, and with them their queries and their locks.
    Sources: libpq, "Parameter Key Words"; PostgreSQL, "Connections and Authentication", TCP settings.
    """
    probe = _keep_alive(cparams, timeout)
    milliseconds = round(timeout * 1000)
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
