"""One URL for both backends, and no password in anything that is shown."""

from __future__ import annotations

import pytest

from pooldrain import ConfigurationError
from pooldrain.sqla.database_url import DatabaseUrl

PASSWORD = "geheim"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "PostgreSQL"])
def test_postgresql_means_psycopg_in_both_backends(scheme: str) -> None:
    url = DatabaseUrl.parse(f"{scheme}://user:{PASSWORD}@host:5433/name?sslmode=require")
    assert url.dialect == "postgresql"
    assert url.sync_url == url.async_url
    assert url.sync_url.drivername == "postgresql+psycopg"
    assert (url.sync_url.username, url.sync_url.password, url.sync_url.host) == ("user", PASSWORD, "host")
    assert (url.sync_url.port, url.sync_url.database, url.sync_url.query) == (5433, "name", {"sslmode": "require"})


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite", "sqlite+aiosqlite"])
def test_sqlite_means_sqlite3_in_one_and_aiosqlite_in_the_other(scheme: str) -> None:
    url = DatabaseUrl.parse(f"{scheme}:///dir/file.db?timeout=5")
    assert url.dialect == "sqlite"
    assert str(url.sync_url) == "sqlite:///dir/file.db?timeout=5"
    assert str(url.async_url) == "sqlite+aiosqlite:///dir/file.db?timeout=5"


def test_a_socket_directory_is_a_host_too() -> None:
    url = DatabaseUrl.parse("postgresql://postgres:@/postgres?host=/run/pg&port=5432")
    assert url.sync_url.query == {"host": "/run/pg", "port": "5432"}


def test_several_hosts_are_taken_as_sqlalchemy_writes_them() -> None:
    assert DatabaseUrl.parse("postgresql://u@/n?host=a:1&host=b:2").sync_url.query == {"host": ("a:1", "b:2")}


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://user:{PASSWORD}@host/name",
        f"postgresql://user@host/name?password={PASSWORD}",
        f"postgresql://user@host/name?sslkey=k&sslpassword={PASSWORD}",
        f"postgresql://user:{PASSWORD}@host/name?password={PASSWORD}",
    ],
)
def test_whatever_is_shown_hides_the_password(text: str) -> None:
    url = DatabaseUrl.parse(text)
    for shown in (str(url), repr(url), f"{url}", url.masked):
        assert PASSWORD not in shown
        assert "***" in shown
        assert "user" in shown
    assert PASSWORD in url.sync_url.render_as_string(hide_password=False)


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    assert DatabaseUrl.parse("postgresql://user@host/name").masked == "postgresql://user@host/name"


def test_an_error_of_the_driver_is_masked_word_by_word() -> None:
    url = DatabaseUrl.parse("postgresql://user:pa%40ss@host/name?sslpassword=1")
    assert url.mask("pa@ss failed on port 5431, key 1 (pa@ss)") == "*** failed on port 5431, key *** (***)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "malformed"),
        (f"user:{PASSWORD}@host/name", "malformed"),
        (f"postgresql://user:{PASSWORD}@host:54x2/name", "malformed"),
        (f"postgresql://user:{PASSWORD}@host:99999/name", "port 99999"),
        (f"postgresql://user:ge@{PASSWORD}@host/name", "more than one @.*%40"),
        (f"postgresql://user:{PASSWORD}@host/name?nonsense=1", 'does not know: .*"nonsense"'),
        (f"mysql://user:{PASSWORD}@host/name", "unknown database, mysql"),
        (f"postgresql+asyncpg://user:{PASSWORD}@host/name", "unknown driver, asyncpg: .* through psycopg"),
        (f"sqlite+pysqlcipher://:{PASSWORD}@/file.db", "unknown driver, pysqlcipher"),
        (f"sqlite://user:{PASSWORD}@host/file.db", "three slashes"),
        ("sqlite:///file.db?nonsense=1", "does not know: nonsense"),
    ],
)
def test_a_url_that_cannot_work_is_refused_in_one_line_that_hides_the_password(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as refusal:
        DatabaseUrl.parse(text)
    assert PASSWORD not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_sqlite_in_memory_is_refused_since_each_connection_would_see_its_own(text: str) -> None:
    with pytest.raises(ConfigurationError, match="in-memory SQLite database, of which every pooled connection"):
        DatabaseUrl.parse(text)
