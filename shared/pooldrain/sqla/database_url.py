"""One database URL that serves both backends, and that never shows its password."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from pooldrain.errors import ConfigurationError

Dialect = Literal["postgresql", "sqlite"]

_EXAMPLES = "write it as postgresql://user:password@host:5432/name or sqlite:///file.db"
_SCHEMES: dict[str, Dialect] = {
    "postgres": "postgresql",
    "postgresql": "postgresql",
    "postgresql+psycopg": "postgresql",
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
}
_DRIVERS: dict[Dialect, str] = {"postgresql": "psycopg", "sqlite": "sqlite3 and aiosqlite"}
_SQLITE_OPTIONS = {"cached_statements", "check_same_thread", "detect_types", "isolation_level", "timeout", "uri"}
_HIDDEN = "***"


@dataclass(frozen=True, slots=True, repr=False)
class DatabaseUrl:
    """A parsed database URL: `postgresql` through psycopg 3 or `sqlite` through sqlite3 / aiosqlite.

    Its text forms are masked; only `sync_url` and `async_url` carry the password.
    """

    dialect: str  # a Dialect, but for an engine that an application has made
    _url: URL  # without a driver: each backend adds its own

    @classmethod
    def parse(cls, text: str) -> DatabaseUrl:
        """Raise ConfigurationError, which never quotes the text, unless both backends can use this URL."""
        text = text.strip()
        try:
            url = make_url(text)
        except (ArgumentError, ValueError):  # ValueError: the port; its message would quote half a password
            raise ConfigurationError(f"the database URL is malformed; {_EXAMPLES}") from None
        scheme = url.drivername.lower()
        dialect = _SCHEMES.get(scheme)
        if dialect is None:
            raise ConfigurationError(_unknown_scheme(scheme))
        url = url.set(drivername=dialect)
        if dialect == "postgresql":
            _check_postgresql(text, url)
        else:
            _check_sqlite(url)
        return cls(dialect, url)

    @classmethod
    def of_engine(cls, url: URL) -> DatabaseUrl:
        """Of an engine that an application has made: any database, through any driver. Only its text forms serve."""
        return cls(url.get_backend_name(), url)

    @property
    def sync_url(self) -> URL:
        """For `create_engine`."""
        return self._url.set(drivername="postgresql+psycopg" if self.dialect == "postgresql" else "sqlite")

    @property
    def async_url(self) -> URL:
        """For `create_async_engine`."""
        return self._url.set(drivername="postgresql+psycopg" if self.dialect == "postgresql" else "sqlite+aiosqlite")

    @property
    def masked(self) -> str:
        """The URL for logs and messages, with every password replaced."""
        secrets = {key: _HIDDEN for key in self._url.query if _is_secret(key)}
        # The stars are meant to be read, so they are not percent-encoded.
        return self._url.update_query_dict(secrets).render_as_string(hide_password=True).replace("%2A%2A%2A", _HIDDEN)

    def mask(self, text: str) -> str:
        """The text, an error of the driver say, with this URL's passwords replaced."""
        secrets = [self._url.password, *(value for key, value in self._url.query.items() if _is_secret(key))]
        for secret in secrets:
            if isinstance(secret, str) and secret:
                # As words of their own: a password of one letter would turn the whole text into stars.
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _HIDDEN, text)
        return text

    def __str__(self) -> str:
        return self.masked

    def __repr__(self) -> str:
        return f"DatabaseUrl({self.masked!r})"


def _is_secret(key: str) -> bool:
    return "password" in key.lower() or "secret" in key.lower()


def _unknown_scheme(scheme: str) -> str:
    database, _, driver = scheme.partition("+")
    dialect = _SCHEMES.get(database)
    if dialect is not None:
        return (
            f"the database URL names an unknown driver, {driver}: {dialect} is used through {_DRIVERS[dialect]}; "
            f"{_EXAMPLES}"
        )
    return f"the database URL names an unknown database, {database}; {_EXAMPLES}"


def _check_postgresql(text: str, url: URL) -> None:
    # SQLAlchemy takes the first @ for the end of the password: the rest of it would be shown as the host.
    if text.count("@") > 1:
        raise ConfigurationError("the database URL has more than one @; within a password write it as %40")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise ConfigurationError(f"the database URL has port {url.port}; a port is between 1 and 65535")
    arguments = url.translate_connect_args(username="user", database="dbname")
    options = {key: value if isinstance(value, str) else ",".join(value) for key, value in url.query.items()}
    try:
        make_conninfo(**{**arguments, **options})
    except psycopg.Error as error:
        raise ConfigurationError(
            f"the database URL has an option that PostgreSQL does not know: {str(error).strip()}"
        ) from None


def _check_sqlite(url: URL) -> None:
    if url.host or url.username or url.password or url.port:
        raise ConfigurationError("the database URL of a SQLite file has three slashes: sqlite:///file.db")
    name = url.database or ""
    if not name or ":memory:" in name or url.query.get("mode") == "memory":
        raise ConfigurationError(
            "the database URL asks for an in-memory SQLite database, of which every pooled connection would have "
            "its own; name a file: sqlite:///file.db"
        )
    unknown = set(url.query) - _SQLITE_OPTIONS
    if unknown and "uri" not in url.query:  # with uri=true SQLite itself takes the others
        raise ConfigurationError(
            f"the database URL has an option that SQLite does not know: {', '.join(sorted(unknown))}"
        )
