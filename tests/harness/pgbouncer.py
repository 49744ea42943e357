"""A real PgBouncer in front of the tests' PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Literal

import psycopg
from sqlalchemy import make_url

from pooldrain_compare.harness.processes import free_port
from tests.harness.waiting import eventually

ROOMY = 20  # server connections


class PgBouncer:
    """One that runs. `url` goes through it."""

    def __init__(self, url: str, port: int) -> None:
        self.url = make_url(url).set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        self._console = make_url(self.url).set(database="pgbouncer").render_as_string(hide_password=False)

    def show(self, what: str) -> list[dict[str, object]]:
        """The rows of SHOW."""
        with psycopg.connect(self._console, autocommit=True) as console:
            cursor = psycopg.ClientCursor(console)
            cursor.execute(f"SHOW {what}".encode())
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def clients(self) -> list[str]:
        """The application names of the clients that services have there."""
        found = [str(row.get("application_name") or row["type"]) for row in self.show("CLIENTS")]
        return [name for name in found if name.startswith("pooldrain:")]

    @property
    def connected(self) -> int:
        """How many clients there are, but for who asks."""
        return len([row for row in self.show("CLIENTS") if row["database"] != "pgbouncer"])


@contextlib.contextmanager
def pgbouncer(
    url: str, mode: Literal["transaction", "session"], *, size: int = ROOMY, more: str = ""
) -> Generator[PgBouncer]:
    """Run one until the block ends."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert program is not None, "as root: apt-get install --no-install-recommends pgbouncer (Debian, Ubuntu)"
    target, port = make_url(url), free_port()
    host, database_port = str(target.query.get("host") or target.host), target.query.get("port") or target.port
    with tempfile.TemporaryDirectory(prefix="pooldrain-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "users").write_text('"postgres" ""\n', "utf-8")
        configuration = directory / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\n* = host={host} port={database_port} user=postgres\n"
            "[pgbouncer]\nlisten_addr = 127.0.0.1\nunix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {directory}/users\nadmin_users = postgres\nlisten_port = {port}\n"
            f"pool_mode = {mode}\ndefault_pool_size = {size}\nquery_wait_timeout = 120\n{more}\n",
            "utf-8",
        )
        # Not as root, which it refuses, but as who may come to the server's socket.
        user = ["-u", Path(host).owner() if host.startswith("/") else "nobody"] if os.geteuid() == 0 else []
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen([program, "-q", *user, str(configuration)], stdout=log, stderr=log)
            try:
                made = PgBouncer(url, port)
                eventually(lambda: _answers(made), f"PgBouncer answers; {(directory / 'log').read_text('utf-8')}")
                yield made
            finally:
                process.kill()
                process.wait()


def _answers(made: PgBouncer) -> bool:
    with contextlib.suppress(psycopg.Error):
        return bool(made.show("VERSION"))
    return False
