"""The table without a key, and what the applications do with it."""

from __future__ import annotations

from collections.abc import Iterable

import psycopg

TABLE = "pooldrain_fleet_orders"
QUERY = "SELECT pg_sleep(0.03)"
INSERT = f"INSERT INTO {TABLE} (id) VALUES (:id)"  # noqa: S608 - our own name
AFTERWARDS = 0.03  # seconds


def make_table(url: str) -> None:
    """An empty one. Raises psycopg.Error."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
        connection.execute(f"CREATE TABLE {TABLE} (id text NOT NULL)")


def drop_table(url: str) -> None:
    """Leave nothing. Raises psycopg.Error."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP TABLE IF EXISTS {TABLE}")


def executed(url: str, orders: Iterable[str]) -> tuple[int, int]:
    """How many of these orders were executed, and how many of them more than once. Raises psycopg.Error."""
    times = f"SELECT count(*) AS times FROM {TABLE} WHERE id = ANY(%s) GROUP BY id"  # noqa: S608 - as above
    query = f"SELECT count(*), count(*) FILTER (WHERE times > 1) FROM ({times}) AS each"  # noqa: S608 - as above
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode(), [list(orders)]).fetchone()
    assert row is not None, "a count has a row"
    return int(row[0]), int(row[1])
