"""Rolling restarts behind real proxies, in short: no client notices. The long form is `make fleet`."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from rich.console import Console

from pooldrain.errors import StartupError
from pooldrain_compare.cli import run as run_command
from pooldrain_compare.fleet import proxies
from pooldrain_compare.fleet.command import restart_fleets, table
from pooldrain_compare.fleet.contenders import CONTENDERS
from pooldrain_compare.fleet.proxies import PROXIES, RECIPES
from pooldrain_compare.fleet.rolling import FleetResult
from pooldrain_compare.fleet.table import TABLE, drop_table, executed, make_table
from tests.harness.postgres import Postgres

DOCUMENT = Path(__file__).parents[3] / "docs" / "how-to" / "fleet.md"

CLEAN = FleetResult(CONTENDERS["uvicorn"], "haproxy", 3, 100, 0, 0, 0, 0, (0,), ())


def test_no_client_notices_that_the_instances_are_restarted(postgres: Postgres) -> None:
    colours = ["gunicorn", "uvicorn"]  # one of each; `make fleet` has them all
    results = restart_fleets(colours, list(PROXIES), rounds=1, jobs=2, url=postgres.url)
    noticed = [result for result in results if not result.clean]
    assert not noticed
    assert [(result.contender.name, result.proxy) for result in results] == [(s, p) for p in PROXIES for s in colours]
    assert all(result.requests > 50 and result.restarts == 3 for result in results)


@pytest.mark.parametrize("seen", [{"not_2xx": 1}, {"lost": 1}, {"twice": 1}, {"missing": 1}, {"exit_codes": (0, 3)}])
def test_whatever_a_client_or_the_database_notices_is_told(seen: dict[str, int]) -> None:
    result = replace(CLEAN, **seen)  # type: ignore[arg-type]  # the fields' own types
    assert not result.clean
    assert CLEAN.clean


def test_the_table_tells_every_number() -> None:
    out = io.StringIO()
    Console(file=out, width=160).print(table([replace(CLEAN, not_2xx=41, lost=42, twice=43)]))
    assert all(str(number) in out.getvalue() for number in (41, 42, 43, 100))


def test_an_order_that_is_executed_twice_is_seen(postgres: Postgres) -> None:
    make_table(postgres.url)
    try:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            for order in ("once", "twice", "twice", "others"):
                connection.execute(f"INSERT INTO {TABLE} VALUES (%s)".encode(), [order])
        assert executed(postgres.url, ["once", "twice", "never"]) == (2, 1)
    finally:
        drop_table(postgres.url)


@pytest.mark.parametrize("proxy", PROXIES.values(), ids=lambda proxy: proxy.name)
def test_a_recipe_is_what_the_documentation_shows(proxy: proxies.Proxy) -> None:
    recipe = (RECIPES / proxy.recipe).read_text("utf-8")
    assert f"```\n{recipe}```" in DOCUMENT.read_text("utf-8")


@pytest.mark.parametrize("proxy", PROXIES.values(), ids=lambda proxy: proxy.name)
def test_of_a_recipe_the_ports_alone_are_replaced(proxy: proxies.Proxy) -> None:
    configuration = proxy.configuration(1, (2, 3, 4))
    back = configuration
    for port, ours in zip((":8080", ":8001", ":8002", ":8003"), (":1", ":2", ":3", ":4"), strict=True):
        back = back.replace(f"127.0.0.1{ours}", f"127.0.0.1{port}", 1)
    assert back == (RECIPES / proxy.recipe).read_text("utf-8")


def nowhere(_name: str, path: str) -> None:
    """What `shutil.which` finds where nothing is."""


def test_a_proxy_that_is_not_installed_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", nowhere)
    with pytest.raises(StartupError, match=r"^haproxy is not installed; as root: apt-get install .* haproxy \("):
        PROXIES["haproxy"].argv(1, (2, 3, 4), tmp_path)


def test_a_server_or_a_proxy_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["fleet", "--proxy", "apache"]) == 2
    assert "apache" in capsys.readouterr().err
