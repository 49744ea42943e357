"""A PostgreSQL with room for a benchmark's connections."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import psycopg
from psycopg import sql

from pooldrain.runtime.embedded import EmbeddedDatabase
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain_compare.harness.environment import database, libpq_url

MAX_CONNECTIONS = 500


@contextlib.contextmanager
def roomy_database(url: str | None, say: Callable[[str], None]) -> Generator[str]:
    """The given server as it is, or an embedded one of its own, which allows MAX_CONNECTIONS, stopped at the end."""
    if url is not None:
        with database(url, say) as given:
            yield given
        return
    # As root PostgreSQL runs as a user of its own, who has to reach the directory.
    with tempfile.TemporaryDirectory(prefix="pooldrain-bench-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        data = Path(directory) / "pgdata"
        with EmbeddedDatabase(data) as first, psycopg.connect(_plain(first), autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER SYSTEM SET max_connections = {}").format(MAX_CONNECTIONS))
        with EmbeddedDatabase(data) as second:  # the setting needs a restart
            yield _plain(second)


def _plain(url: str) -> str:
    return libpq_url(DatabaseUrl.parse(url))
