"""The configuration file: below the environment and the command line, above the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pooldrain.errors import ConfigurationError
from pooldrain.runtime.options.settings import Settings, load_settings
from pooldrain.servers import Backend


@pytest.fixture(name="place", autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*argv: str, env: Mapping[str, str] | None = None, backend: Backend = "sync") -> Settings:
    return load_settings(backend, argv, env or {})


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        load(*argv)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_its_keys_are_the_options_names_with_dashes_or_underscores(place: Path) -> None:
    (place / "service.toml").write_text('drain-timeout = 7\nfail_on_leak = true\napp = "shop:app"\nleak_age = "off"\n')
    settings = load("--config", "service.toml")
    assert settings.shutdown.drain_timeout == 7
    assert settings.leaks.fail_on_leak
    assert str(settings.app) == "shop:app"
    assert settings.leaks.leak_age is None


def test_a_table_of_pyproject_is_read_where_no_file_is_named(place: Path) -> None:
    (place / "pyproject.toml").write_text("[tool.pooldrain]\nworkers = 3\n[tool.other]\nworkers = 9\n")
    assert load().workers == 3
    (place / "other.toml").write_text("")
    assert load("--config", "other.toml").workers == 1


def test_a_pyproject_without_the_table_says_nothing(place: Path) -> None:
    (place / "pyproject.toml").write_text("[project]\nname = 'shop'\n")
    assert load().workers == 1


def test_the_environment_and_the_command_line_win_over_it(place: Path) -> None:
    (place / "pyproject.toml").write_text("[tool.pooldrain]\nworkers = 3\n")
    assert load(env={"POOLDRAIN_WORKERS": "4"}).workers == 4
    assert load(env={"WEB_CONCURRENCY": "5"}).workers == 5
    assert load("--workers", "6", env={"POOLDRAIN_WORKERS": "4"}).workers == 6


def test_options_of_the_other_backend_are_no_business_of_this_one(place: Path) -> None:
    (place / "pyproject.toml").write_text("[tool.pooldrain]\nthreads = 8\nserver = 'waitress'\n")
    assert load(backend="async").server == "uvicorn"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drain-timout = 3\n", "service.toml: drain-timout: there is no such option (did you mean drain-timeout?)"),
        ("drain-timeout = 'soon'\n", "service.toml: drain-timeout must be a number of seconds, not 'soon'"),
        ("drain-timeout = [1]\n", "service.toml: drain-timeout must be a string, a number or a boolean"),
        ("leak-age = 1\nleak_age = 2\n", "service.toml: leak_age is given twice, with a dash and with an underscore"),
        ("drain-timeout = \n", "service.toml is not valid TOML: "),
        ("chdir = '/'\n", "service.toml: chdir: there is no such option"),
        ("grace-period = 1\n", "service.toml: grace-period 1 s is too short"),
    ],
)
def test_what_is_wrong_in_it_is_told_with_its_place(place: Path, text: str, message: str) -> None:
    (place / "service.toml").write_text(text)
    assert refusal("--config", "service.toml").startswith(message)


def test_a_file_that_is_not_there_is_told() -> None:
    assert refusal("--config", "nowhere.toml") == "--config must be a file, not 'nowhere.toml'"


def test_a_table_that_is_none_is_told(place: Path) -> None:
    (place / "pyproject.toml").write_text("[tool]\npooldrain = 3\n")
    assert refusal() == "pyproject.toml: tool.pooldrain must be a table"


# -- what platforms say, and what is asked for beside a service


def test_a_platforms_port_and_its_number_of_processes_are_honoured() -> None:
    settings = load(env={"PORT": "5000", "WEB_CONCURRENCY": "2"})
    assert (settings.bind, settings.workers) == ("0.0.0.0:5000", 2)
    assert load(env={"PORT": "5000", "POOLDRAIN_BIND": "127.0.0.1:1"}).binds == (("127.0.0.1", 1),)


@pytest.mark.parametrize("port", ["many", "70000", "-1"])
def test_a_port_that_is_none_is_told(port: str) -> None:
    with pytest.raises(ConfigurationError, match=f"PORT must be a port between 0 and 65535, not '{port}'"):
        load(env={"PORT": port})


def test_every_value_is_shown_with_where_it_comes_from(place: Path) -> None:
    (place / "pyproject.toml").write_text("[tool.pooldrain]\nworkers = 3\n")
    url = {"POOLDRAIN_DATABASE_URL": "postgresql://user:geheim@host/name"}
    settings = load("--print-config", "--drain-timeout", "7", env=url)
    assert settings.print_config
    lines = {line.partition(" = ")[0]: line for line in settings.describe().splitlines()}
    assert lines["drain-timeout"].split() == ["drain-timeout", "=", "7", "#", "--drain-timeout"]
    assert lines["workers"].endswith("# pyproject.toml: tool.pooldrain.workers")
    assert lines["linger"].split() == ["linger", "=", "0.05", "#", "default"]
    assert "postgresql://user:***@host/name" in lines["database-url"]
    assert "geheim" not in settings.describe()


def test_checking_is_asked_for_on_the_command_line_only() -> None:
    assert load("--check-config").check_config
    assert not load(env={"POOLDRAIN_CHECK": "true"}).check_config


# -- the application, and where it is


def test_an_application_is_named_with_and_without_its_flag() -> None:
    assert str(load("shop:app").app) == str(load("--app", "shop:app").app) == "shop:app"
    assert load().app is None
    assert "named twice" in refusal("shop:app", "--app", "shop:app")


def test_a_database_url_of_an_applications_own_is_left_to_it() -> None:
    theirs = {"DATABASE_URL": "mysql+pymysql://user:geheim@host/shop"}
    assert load("shop:app", env=theirs).database_url is None
    assert not [dest for dest, _ in load("shop:app", env=theirs).given if dest == "database_url"]
    with pytest.raises(ConfigurationError, match="DATABASE_URL: the database URL names an unknown database"):
        load(env=theirs)


def test_a_factory_that_takes_the_runner_takes_the_database_url(place: Path) -> None:
    (place / "fine_shop.py").write_text("def create_app(runner): ...\n")
    assert str(load("fine_shop:create_app", env={"DATABASE_URL": "sqlite:///a.db"}).database_url) == "sqlite:///a.db"


def test_another_directory_is_changed_to_before_anything_else_is_read(place: Path) -> None:
    (place / "service").mkdir()
    (place / "service" / "pyproject.toml").write_text("[tool.pooldrain]\nworkers = 3\n")
    assert load("--chdir", "service").workers == 3
    assert Path.cwd() == place / "service"


def test_two_probes_at_one_path_are_refused() -> None:
    told = refusal("--livez-path", "/health", "--readyz-path", "/health")
    assert told == "--livez-path and --readyz-path name the same path; give each its own"


@pytest.mark.parametrize("path", ["health", "/health?full=1", "/he alth", ""])
def test_a_probe_without_a_path_is_refused(path: str) -> None:
    assert "must be a path that begins with /" in refusal("--livez-path", path) or not path
