"""`pooldrain plan`: whether a fleet fits its database, and what is to be written into its manifest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

import psycopg

from pooldrain.budget import Fleet, Room, verdict, what_fits
from pooldrain.errors import ConfigurationError, StartupError
from pooldrain.exit_codes import ExitCode
from pooldrain.runtime.options.readers import not_negative, positive
from pooldrain.runtime.options.settings import Settings, load_settings
from pooldrain.servers import Backend
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.room import LIMITS, OTHERS, room_from

SHOWN = 5  # others that are named

CONNECT_TIMEOUT = 5  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes beside the options of the service."""
    parser.add_argument("--instances", type=_number(positive), default=1, metavar="N", help="that run (%(default)s)")
    parser.add_argument(
        "--surge", type=_number(not_negative), default=1, metavar="N", help="more while a restart goes on (%(default)s)"
    )
    parser.add_argument(
        "--async", dest="backend", action="store_const", const="async", default="sync", help="of pooldrain-async"
    )
    parser.add_argument(
        "--kubernetes", action="store_true", help="print what a Deployment has to say, and ask no database"
    )


def run(options: argparse.Namespace, service: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the budget; 0 if it fits, 6 if not. `service`: the options of the service.

    Raises ConfigurationError, and StartupError if the database is out of reach.
    """
    backend: Backend = options.backend
    settings = load_settings(backend, service, environ)
    fleet = Fleet(
        instances=options.instances,
        workers=settings.workers,
        pool_size=settings.pool.pool_size,
        max_overflow=settings.pool.max_overflow,
        surge=options.surge,
        recycles=settings.needs_master,
    )
    if options.kubernetes:
        sys.stdout.write(manifest(fleet, settings))
        return ExitCode.DRAINED
    room, pooled = ask(_database(settings, environ))
    lines, fits = told(fleet, room)
    if pooled:
        lines.insert(1, "through a pooler: what counts is its max_client_conn, and its default_pool_size below these")
    sys.stdout.write("\n".join(lines) + "\n")
    return ExitCode.DRAINED if fits else ExitCode.DOES_NOT_FIT


def ask(url: DatabaseUrl) -> tuple[Room, bool]:
    """What room the database has, and whether a pooler is in between. Raises StartupError."""
    target = url.sync_url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with psycopg.connect(
            target, autocommit=True, prepare_threshold=None, connect_timeout=CONNECT_TIMEOUT
        ) as connection:
            pid = connection.execute(b"SELECT pg_backend_pid()").fetchone()
            limits = connection.execute(LIMITS.encode()).fetchone()
            others = connection.execute(OTHERS.encode()).fetchall()
            pooled = pid is not None and pid[0] != connection.info.backend_pid
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise StartupError(f"cannot ask {url.masked}: {url.mask(reason)}") from None
    assert limits is not None, "the user and the database are there"
    return room_from(limits, others), pooled


def told(fleet: Fleet, room: Room) -> tuple[list[str], bool]:
    """The budget in lines, and whether all of it fits."""
    limit, left = room.tightest
    who = f"the superuser {room.user}" if room.superuser else room.user
    reserved = f", {room.reserved} of them reserved for others" if room.reserved else ""
    server = f"PostgreSQL {room.version}, {who}, database {room.database}"
    lines = [f"{server}: {limit}{reserved}; {room.used} used by others: room for {max(0, left)}"]
    most = sorted(room.others.items(), key=lambda other: -other[1])
    lines += [f"    {number:5d}  {name}" for name, number in most[:SHOWN]]
    lines += [f"           and {len(most) - SHOWN} more"] if len(most) > SHOWN else []
    found = verdict(fleet, room)
    for line in found:
        beyond = f", {line.too_many} too many" if line.too_many else ""
        lines.append(f"{'no' if beyond else 'ok':>4} {line.needed:5d}  {line.occasion}{beyond}")
    fits = not any(line.too_many for line in found)
    if not fits:
        lines.append(f"what fits: {what_fits(fleet, room)}")
    return lines, fits


def manifest(fleet: Fleet, settings: Settings) -> str:
    """What a Deployment has to say of such a fleet."""
    ladder = settings.shutdown.ladder
    return f"""\
# The grace period of {ladder.grace_period:g} s, and a margin; {fleet.most_processes * fleet.each} connections at most.
spec:
  replicas: {fleet.instances}
  strategy:
    type: RollingUpdate
    rollingUpdate: {{maxSurge: {fleet.surge}, maxUnavailable: {0 if fleet.surge else 1}}}
  template:
    spec:
      terminationGracePeriodSeconds: {ladder.termination_grace_period}
"""


def _number(read: Callable[[str], int]) -> Callable[[str], int]:
    """The reader, complaining as argparse wants it."""

    def number(text: str) -> int:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None

    return number


def _database(settings: Settings, environ: Mapping[str, str]) -> DatabaseUrl:
    url = settings.database_url
    if url is None and environ.get("DATABASE_URL"):  # the application's own
        url = DatabaseUrl.parse(environ["DATABASE_URL"].replace("postgresql+asyncpg:", "postgresql:"))
    if url is None:
        raise ConfigurationError("which database? give --database-url, or set DATABASE_URL")
    if url.dialect != "postgresql":
        raise ConfigurationError("a SQLite file has no limit of connections; give the URL of a PostgreSQL")
    return url
