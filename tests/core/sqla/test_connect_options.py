"""What the drivers are told: each connection knows its process, and when to give up."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from pooldrain.policy import PoolPolicy
from pooldrain.sqla.connect_options import connect_options, fill_in_options
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.tracked_pool import TrackedPool

POSTGRESQL = DatabaseUrl.parse("postgresql://user@db.example.org/name")


def told(policy: PoolPolicy, **given: Any) -> dict[str, Any]:
    """What the driver is told, when the URL says what is `given`."""
    parameters = dict(given)
    connect_options(POSTGRESQL, policy, "service")(None, None, [], parameters)
    return parameters


def settings(parameters: dict[str, Any]) -> dict[str, str]:
    """The server's settings; of two the last one counts, as in PostgreSQL."""
    words = parameters.get("options", "").split()
    assert words[::2] == ["-c"] * (len(words) // 2)
    return dict(word.split("=") for word in words[1::2])


@pytest.mark.parametrize("timeout", [1.0, 15.0, 60.0])
def test_both_ends_notice_within_the_timeout_that_the_other_is_gone(timeout: float) -> None:
    parameters = told(PoolPolicy(tcp_timeout=timeout))
    assert parameters["tcp_user_timeout"] == timeout * 1000
    server = settings(parameters)
    assert server["tcp_user_timeout"] == str(round(timeout * 1000))
    assert 0 < int(server["client_connection_check_interval"]) <= min(2000, timeout * 1000)
    probes = [(parameters[f"keepalives_{name}"], server[f"tcp_keepalives_{name}"]) for name in ("idle", "interval")]
    assert all(ours == int(theirs) >= 1 for ours, theirs in probes)
    if timeout >= 3:  # the systems count in whole seconds
        assert parameters["keepalives_idle"] + 2 * parameters["keepalives_interval"] == timeout


def test_what_the_url_says_comes_first() -> None:
    parameters = told(
        PoolPolicy(),
        connect_timeout=7,
        application_name="mine",
        keepalives_idle=99,
        tcp_user_timeout=1,
        options="-c tcp_user_timeout=2",
    )
    assert (parameters["connect_timeout"], parameters["application_name"]) == (7, "mine")
    assert (parameters["keepalives_idle"], parameters["tcp_user_timeout"]) == (99, 1)
    assert settings(parameters)["tcp_user_timeout"] == "2"


def test_off_sends_the_server_no_start_up_options_which_pgbouncer_would_refuse() -> None:
    assert set(told(PoolPolicy(tcp_timeout=None))) == {"application_name", "connect_timeout"}


def test_sqlite_is_told_how_long_to_wait_for_another_writer() -> None:
    parameters: dict[str, Any] = {}
    url = DatabaseUrl.parse("sqlite:///file.db")
    connect_options(url, PoolPolicy(pool_timeout=3), "service")(None, None, [], parameters)
    assert parameters == {"timeout": 3, "check_same_thread": False}


class Socketed:
    """A driver's connection over a real socket pair; psycopg's lock tells whether somebody uses it."""

    def __init__(self, *, busy: bool) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.lock = threading.Lock()
        if busy:
            self.lock.acquire()

    def fileno(self) -> int:
        return self.ours.fileno()

    @property
    def ended(self) -> bool:
        """Whether its other end has heard of an end."""
        with suppress(BlockingIOError):
            return self.theirs.recv(1, socket.MSG_DONTWAIT) == b""
        return False


@pytest.mark.parametrize("busy", [True, False])
def test_of_what_is_in_transit_only_what_somebody_waits_for_is_ended(busy: bool) -> None:
    driver = Socketed(busy=busy)
    record = SimpleNamespace(driver_connection=driver, dbapi_connection=driver)
    closed: list[object] = []
    pool: Any = SimpleNamespace(in_transit=lambda: [record], tracker=SimpleNamespace(closed_one=closed.append))
    assert TrackedPool.end_in_transit(pool) == (1 if busy else 0)
    assert driver.ended is busy
    assert closed == ([driver] if busy else [])
    driver.ours.close()
    driver.theirs.close()


# -- engines that an application has made


def filled_in(url: str, *arguments: Any, **given: Any) -> dict[str, Any]:
    """What the driver of an application's engine is told, when the application says what is `given`."""
    engine = create_async_engine(url).sync_engine if "asyncpg" in url else create_engine(url)
    parameters = dict(given)
    fill_in_options(engine, PoolPolicy(), "service")(None, None, list(arguments), parameters)
    return parameters


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_what_an_application_has_left_open_is_filled_in_and_nothing_that_a_pooler_refuses(driver: str) -> None:
    parameters = filled_in(f"postgresql+{driver}://host/name")
    assert parameters["fallback_application_name"] == f"pooldrain:service:{os.getpid()}"
    assert parameters["connect_timeout"] == 5
    assert parameters["keepalives_idle"] == 5
    assert not {"options", "application_name"} & set(parameters)


def test_what_an_application_has_chosen_stays() -> None:
    theirs = {"connect_timeout": 60, "application_name": "shop", "keepalives_idle": 1, "tcp_user_timeout": 9}
    assert theirs.items() <= filled_in("postgresql+psycopg://host/name", **theirs).items()


def test_what_the_environment_says_of_the_connecting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "60")
    assert "connect_timeout" not in filled_in("postgresql+psycopg://host/name")


def test_asyncpg_is_told_in_its_own_words() -> None:
    parameters = filled_in("postgresql+asyncpg://host/name", server_settings={"jit": "off"})
    assert parameters["server_settings"] == {"jit": "off", "application_name": f"pooldrain:service:{os.getpid()}"}
    assert parameters["timeout"] == 5.0
    mine = filled_in("postgresql+asyncpg://host/name", server_settings={"application_name": "shop"}, timeout=60)
    assert (mine["server_settings"], mine["timeout"]) == ({"application_name": "shop"}, 60)


def test_a_driver_that_takes_a_string_of_its_own_is_left_alone() -> None:
    assert filled_in("postgresql+psycopg://host/name", "dbname=name") == {}
    assert filled_in("sqlite:///a.db") == {}
