"""Options and environment variables: one table, one meaning, one line when something is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from pooldrain import ConfigurationError, LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain.runtime.options.settings import Settings, load_settings
from pooldrain.runtime.options.table import BACKENDS, OPTIONS, Option, options_table
from pooldrain.servers import Backend

EVERY_OPTION = [option for options in OPTIONS.values() for option in options]


def load(*argv: str, env: Mapping[str, str] | None = None, backend: Backend = "sync") -> Settings:
    return load_settings(backend, argv, env or {})


def refusal(*argv: str, env: Mapping[str, str] | None = None, backend: Backend = "sync") -> str:
    with pytest.raises(ConfigurationError) as refused:
        load(*argv, env=env, backend=backend)
    message = str(refused.value)
    assert "\n" not in message
    return message


# -- what comes out


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_options_everything_has_its_default(backend: Backend) -> None:
    settings = load(backend=backend)
    assert settings.service == f"pooldrain-{backend}"
    assert settings.server == {"sync": "gunicorn", "async": "uvicorn"}[backend]
    assert (*settings.binds[0], settings.bind) == ("127.0.0.1", 8000, "127.0.0.1:8000")
    assert (settings.workers, settings.threads) == (1, 40 if backend == "sync" else 1)
    assert (settings.pool, settings.leaks, settings.shutdown) == (PoolPolicy(), LeakPolicy(), ShutdownPolicy())
    assert settings.database_url is None
    assert settings.report is None
    assert settings.transcript is None
    assert (settings.log_format, settings.log_level) == ("console", "info")


def test_every_option_finds_its_place(tmp_path: Path) -> None:
    report, transcript = tmp_path / "report.json", tmp_path / "events.jsonl"
    settings = load(
        *("--server", "gunicorn", "--bind", "[::1]:0", "--workers", "3", "--threads", "8"),
        *("--database-url", "sqlite:///x.db", "--pool-size", "4", "--max-overflow", "0", "--pool-timeout", "1.5"),
        *("--pool-recycle", "60", "--no-pre-ping", "--min-idle", "2", "--connect-timeout", "2"),
        *("--leak-threshold", "9", "--leak-age", "40", "--fail-on-leak"),
        *("--announce-period", "1", "--drain-timeout", "2", "--cancel-timeout", "3", "--dispose-timeout", "4"),
        *("--teardown-timeout", "2.5"),
        *("--linger", "0.5", "--grace-period", "20", "--report", str(report), "--transcript", str(transcript)),
        *("--log-format", "json", "--log-level", "debug"),
    )
    assert (*settings.binds[0], settings.bind) == ("::1", 0, "[::1]:0")
    assert (settings.workers, settings.threads) == (3, 8)
    assert settings.database_url is not None
    assert settings.database_url.dialect == "sqlite"
    assert settings.pool == PoolPolicy(
        pool_size=4, max_overflow=0, pool_timeout=1.5, pool_recycle=60, pre_ping=False, min_idle=2, connect_timeout=2
    )
    assert settings.leaks == LeakPolicy(leak_threshold=9, leak_age=40, fail_on_leak=True)
    assert settings.shutdown == ShutdownPolicy(
        announce_period=1,
        drain_timeout=2,
        cancel_timeout=3,
        teardown_timeout=2.5,
        dispose_timeout=4,
        linger=0.5,
        grace_period=20,
    )
    assert (settings.report, settings.transcript) == (report, transcript)
    assert (settings.log_format, settings.log_level) == ("json", "debug")


def test_the_command_line_wins_over_the_environment() -> None:
    environ = {"POOLDRAIN_DRAIN_TIMEOUT": "7", "POOLDRAIN_PRE_PING": "false", "POOLDRAIN_FAIL_ON_LEAK": "yes"}
    assert load(env=environ).shutdown.drain_timeout == 7
    assert load("--drain-timeout=3", env=environ).shutdown.drain_timeout == 3
    assert not load(env=environ).pool.pre_ping
    assert load("--pre-ping", env=environ).pool.pre_ping
    assert not load("--no-fail-on-leak", env=environ).leaks.fail_on_leak
    assert load("--leak-age", "off", env={"POOLDRAIN_LEAK_AGE": "3"}).leaks.leak_age is None


def test_the_database_url_comes_from_the_nearest_place() -> None:
    far = {"DATABASE_URL": "sqlite:///far.db"}
    near = {**far, "POOLDRAIN_DATABASE_URL": "sqlite:///near.db"}
    assert str(load(env=far).database_url) == "sqlite:///far.db"
    assert str(load(env=near).database_url) == "sqlite:///near.db"
    assert str(load("--database-url", "sqlite:///given.db", env=near).database_url) == "sqlite:///given.db"


def test_an_empty_variable_counts_as_unset() -> None:
    assert load(env=dict.fromkeys(["POOLDRAIN_REPORT", "POOLDRAIN_WORKERS", "DATABASE_URL"], "")) == load()


@pytest.mark.parametrize("option", EVERY_OPTION, ids=lambda option: option.name)
def test_a_bad_value_is_blamed_on_the_variable_it_came_from(option: Option) -> None:
    bad = "/" if option.metavar == "FILE" else "?"
    assert refusal(env={option.variable: bad}, backend=option.backends[0]).startswith(option.variable)


def test_a_variable_of_the_other_backend_is_no_business_of_this_one() -> None:
    assert load(backend="async", env={"POOLDRAIN_THREADS": "many", "POOLDRAIN_SERVER": "waitress"}).server == "uvicorn"


def test_secrets_of_the_url_do_not_show_in_the_settings() -> None:
    assert "geheim" not in repr(load("--database-url", "postgresql://user:geheim@host/name"))


# -- what is refused, and how it is said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--pool-size", "many"], "--pool-size must be a whole number, not 'many'"),
        (["--pool-size", "0"], "--pool-size must be 1 or more, not 0"),
        (["--workers", "0"], "--workers must be 1 or more, not '0'"),
        (["--threads", "-3"], "--threads must be 1 or more, not '-3'"),
        (["--drain-timeout", "soon"], "--drain-timeout must be a number of seconds, not 'soon'"),
        (["--drain-timeout", "-1"], "--drain-timeout must be 0 or more seconds, not -1"),
        (["--drain-timeout", "nan"], "--drain-timeout must be 0 or more seconds, not nan"),
        (["--drain-timeout", "inf"], "--drain-timeout must be 1000000 seconds or less, not 'inf'"),
        (["--leak-age", "0"], "--leak-age must be more than 0 seconds, not 0"),
        (["--min-idle", "11"], "--min-idle must be between 0 and --pool-size (10), not 11"),
        (["--server", "apache"], "--server must be gunicorn or waitress, not 'apache'"),
        (["--log-level", "loud"], "--log-level must be debug, info, warning or error, not 'loud'"),
        (["--drain-timeout"], "--drain-timeout needs a value; see pooldrain-sync --help"),
        (["--pre-ping=5"], "--pre-ping/--no-pre-ping takes no value; see pooldrain-sync --help"),
        (["--drain", "5"], "unknown option --drain; see pooldrain-sync --help"),
        (
            ["--drain-timout=5"],
            "unknown option --drain-timout (did you mean --drain-timeout?); see pooldrain-sync --help",
        ),
        (
            ["shop", "serve"],
            "unexpected argument (a database URL goes after --database-url); see pooldrain-sync --help",
        ),
    ],
)
def test_a_bad_option_is_refused_in_words_that_help(argv: list[str], message: str) -> None:
    assert refusal(*argv) == message


def test_a_policys_complaint_speaks_of_options_and_variables() -> None:
    message = refusal("--grace-period", "10", env={"POOLDRAIN_DRAIN_TIMEOUT": "9"})
    assert message.startswith("--grace-period 10 s is too short: --announce-period 0 + POOLDRAIN_DRAIN_TIMEOUT 9 + ")


def test_an_option_of_the_other_backend_is_told_as_such() -> None:
    assert refusal("--threads", "4", backend="async") == "--threads is an option of pooldrain-sync only"


def test_a_misspelt_variable_is_refused_and_an_orchestrators_is_not() -> None:
    expected = "unknown environment variable POOLDRAIN_DRAIN_TIMOUT (did you mean POOLDRAIN_DRAIN_TIMEOUT?)"
    assert refusal(env={"POOLDRAIN_DRAIN_TIMOUT": "5"}) == expected
    injected = {"POOLDRAIN_SERVICE_HOST": "10.0.0.1", "POOLDRAIN_SERVICE_PORT": "8000", "POOLDRAIN_PORT": "tcp://x"}
    assert load(env=injected) == load()


def test_a_misplaced_database_url_is_not_shown() -> None:
    for argv in (["postgresql://user:geheim@host"], ["--databse-url=postgresql://user:geheim@host"]):
        assert "geheim" not in refusal(*argv)


@pytest.mark.parametrize("origin", ["--database-url", "POOLDRAIN_DATABASE_URL", "DATABASE_URL"])
def test_a_bad_database_url_is_blamed_on_its_place_without_being_shown(origin: str) -> None:
    bad = "mysql://user:geheim@host/name"
    message = refusal(origin, bad) if origin.startswith("--") else refusal(env={origin: bad})
    assert message.startswith(f"{origin}: the database URL names an unknown database, mysql")
    assert "geheim" not in message


def test_waitress_serves_one_process() -> None:
    expected = "--workers 2: waitress serves one process; use --server gunicorn"
    assert refusal("--server", "waitress", "--workers", "2") == expected
    assert load("--server", "waitress", "--workers", "1").server == "waitress"
    assert refusal("--server", "waitress", env={"POOLDRAIN_WORKERS": "2"}).startswith("POOLDRAIN_WORKERS 2: waitress")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("8000", "must be HOST:PORT"),
        (":8000", "must name a host, 127.0.0.1:8000 for this machine only or 0.0.0.0:8000 for every network"),
        ("::1:8000", "must have the IPv6 address in brackets"),
        ("[127.0.0.1]:8000", "must have an IPv6 address within the brackets"),
        ("localhost:", "must be HOST:PORT"),
        ("localhost:http", "must be HOST:PORT"),
        ("localhost:65536", "must have a port between 0 and 65535"),
        ("localhost:-1", "must be HOST:PORT"),
        ("300.0.0.1:80", "must be HOST:PORT with a host name or an IP address"),
        ("http://localhost:80", "must be HOST:PORT with a host name or an IP address"),
    ],
)
def test_an_address_that_cannot_be_bound_is_refused(text: str, reason: str) -> None:
    message = refusal("--bind", text)
    assert message.startswith(f"--bind {reason}")
    assert message.endswith(f"not {text!r}")


@pytest.mark.parametrize("text", ["localhost:0", "0.0.0.0:80", "my-host_1.example:65535"])
def test_an_address_that_can_be_bound_is_kept(text: str) -> None:
    assert load("--bind", text).bind == text


# -- files to write at the end


@pytest.mark.parametrize("flag", ["--report", "--transcript"])
def test_a_file_that_can_be_written_is_neither_created_nor_changed(flag: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("yesterday's")
    load(flag, str(old))
    load(flag, str(new))
    assert old.read_text() == "yesterday's"
    assert not new.exists()


@pytest.mark.parametrize("flag", ["--report", "--transcript"])
def test_a_file_that_cannot_be_written_is_refused_at_start(flag: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    looped = tmp_path / "loop"
    looped.symlink_to(looped)
    for bad in (tmp_path, tmp_path / "missing" / "file", tmp_path / "file" / "below", looped, Path("/proc/report")):
        message = refusal(flag, str(bad))
        assert message.startswith(f"{flag} must name a file that can be written (")
        assert message.endswith(f"not '{bad}'")


def test_a_link_to_a_file_that_is_not_there_yet_will_do(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("target")
    assert load("--report", str(link)).report == link
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link"]


def test_a_device_or_a_pipe_is_not_opened_to_find_out(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert load("--report", "/dev/null", "--transcript", str(pipe)).transcript == pipe


def test_report_and_transcript_need_a_file_each(tmp_path: Path) -> None:
    both = str(tmp_path / "both")
    assert refusal("--report", both, env={"POOLDRAIN_TRANSCRIPT": both}).startswith(
        "--report and POOLDRAIN_TRANSCRIPT name"
    )


# -- help, version, documentation


@pytest.mark.parametrize("backend", BACKENDS)
def test_help_tells_every_option_of_the_backend(backend: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load("--help", backend=backend)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for option in EVERY_OPTION:
        assert (f" {option.flag}" in shown) == (backend in option.backends)


def test_version_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("--version", backend="async")
    assert capsys.readouterr().out.startswith("pooldrain-async ")


def test_the_documentations_table_has_a_row_for_every_option() -> None:
    rows = options_table().splitlines()
    assert all(row.count("|") == 5 for row in rows)
    for option in EVERY_OPTION:
        assert sum(f"| `{option.variable}` |" in row for row in rows) == 1


def test_the_documentation_shows_that_table() -> None:
    page = Path(__file__).parents[4] / "docs" / "reference" / "options.md"
    assert options_table() in page.read_text(encoding="utf-8"), "python -m tests.docs.pages writes it anew"


def test_every_field_of_a_policy_is_an_option() -> None:
    names = {option.dest for option in EVERY_OPTION}
    for policy in (PoolPolicy, LeakPolicy, ShutdownPolicy):
        assert set(policy.__dataclass_fields__) <= names
