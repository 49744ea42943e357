"""What every command of the comparison needs: a database, and a directory for what is written."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from pooldrain.errors import ConfigurationError, StartupError
from pooldrain.runtime.embedded import EmbeddedDatabase
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain_compare.harness.witness import Witness


@dataclass(slots=True)
class Artefacts:
    """A directory for logs, reports and transcripts. One that was not asked for goes, unless `keep` is set."""

    path: Path
    keep: bool = field(default=True)


@contextlib.contextmanager
def artefacts(directory: Path | None) -> Generator[Artefacts]:
    """`directory`, made if it is not there, or a temporary one."""
    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"--keep {directory}: {error.strerror}") from None
        yield Artefacts(directory)
        return
    temporary = Artefacts(Path(tempfile.mkdtemp(prefix="pooldrain-compare-")), keep=False)
    try:
        yield temporary
    finally:
        if not temporary.keep:
            shutil.rmtree(temporary.path, ignore_errors=True)


@contextlib.contextmanager
def database(url: str | None, say: Callable[[str], None]) -> Generator[str]:
    """A PostgreSQL URL: the one that was given, checked, or that of an embedded server, stopped at the end."""
    if url is not None:
        parsed = DatabaseUrl.parse(url)
        if parsed.dialect != "postgresql":
            raise ConfigurationError("--database-url must name a PostgreSQL: the comparison asks the server itself")
        yield libpq_url(parsed)
        return
    with _passing_on(say), EmbeddedDatabase() as embedded:
        yield libpq_url(DatabaseUrl.parse(embedded))


@contextlib.contextmanager
def witness(url: str) -> Generator[Witness]:
    """A connection to ask the server over; raises StartupError when there is none."""
    try:
        connected = Witness(url)
    except psycopg.Error as error:
        parsed = DatabaseUrl.parse(url)
        reason = " ".join(str(error).split())
        raise StartupError(f"cannot connect to {parsed.masked}: {parsed.mask(reason)}") from None
    with connected:
        yield connected


def libpq_url(url: DatabaseUrl) -> str:
    """The URL as libpq and the backends take it, without a driver's name."""
    return url.sync_url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextlib.contextmanager
def _passing_on(say: Callable[[str], None]) -> Generator[None]:
    """What the embedded server has to say (such as what it does as root) is shown, as one line each."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    logger = logging.getLogger("pooldrain.runtime.embedded")
    handler, level, propagate = Handler(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
