"""The live page of real services, in a real browser: a leak by name, a drain to its end, a lost connection."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pooldrain_compare.harness.servers import GUNICORN_2, UVICORN, WAITRESS, Backend
from tests.conftest import PutInFlight
from tests.harness.browser import THEMES, WIDTHS, Browser, chromium
from tests.harness.service import Launcher
from tests.harness.waiting import eventually

# Each colour, and several processes.
ON = ("--admin", "127.0.0.1:0")
backends = pytest.mark.parametrize("backend", [WAITRESS, UVICORN, GUNICORN_2], ids=lambda backend: backend.name)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def text_of(browser: Browser, identity: str) -> str:
    return str(browser.ask(f"return document.getElementById('{identity}').innerText"))


@backends
def test_a_leak_appears_by_name_and_a_drain_runs_to_its_last_frame(
    services: Launcher, backend: Backend, browser: Browser, in_flight: PutInFlight
) -> None:
    service = services.start(backend, *ON)
    browser.look(service.process.admin + "/")
    eventually(lambda: "ready" in browser.driver.title, "the page shows the service")
    assert service.get("/db-test-leak", headers=[("X-Request-ID", "leak-1")]).status == 200
    eventually(lambda: "GET /db-test-leak (leak-1)" in text_of(browser, "checkouts"), "the leak is shown")
    leaked = text_of(browser, "checkouts")
    assert "leaked (unreturned)" in leaked
    assert "app.py:" in leaked
    assert "SELECT 1 AS test" in leaked
    assert ", 1 leaked" in text_of(browser, "pools")
    held = in_flight(service)
    eventually(lambda: text_of(browser, "requests").count("POST /orders") == len(held), "what is in flight is shown")
    assert text_of(browser, "workers").count("ready") == backend.workers
    service.send_signal()
    eventually(
        lambda: str(browser.ask("return document.querySelector('#phases .now').innerText")).startswith("draining"),
        "it drains",
    )
    held.release()
    eventually(lambda: "drained, exit code 0" in text_of(browser, "ended"), "the end is shown")
    phases = browser.ask("return [...document.querySelectorAll('#phases li')].map(each => each.innerText)")
    assert [each.split()[0] for each in phases[3:]] == [
        *("draining", "cancelling", "teardown", "reclaiming", "disposing", "stopping", "closed")
    ]
    assert all(each.endswith(" s") for each in phases[3:-1]), "each of them with its time"
    assert service.ended().code == 0
    refused = [line for line in browser.complaints() if "ERR_CONNECTION_REFUSED" not in line]
    assert refused == [], "it asks for nothing from elsewhere, and its own policy lets it work"


def test_it_says_when_it_has_lost_the_connection(services: Launcher, browser: Browser) -> None:
    service = services.start(WAITRESS, *ON)
    browser.look(service.process.admin + "/")
    eventually(lambda: "ready" in browser.driver.title, "the page shows the service")
    assert not browser.ask("return document.getElementById('lost').checkVisibility()")
    service.send_signal(signal.SIGKILL)
    eventually(lambda: text_of(browser, "lost").startswith("No connection since "), "it says so")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_desk_and_telephone_in_both_themes_with_hostile_text(
    shared_services: Launcher, browser: Browser, theme: str, width: int, tmp_path: Path
) -> None:
    service = shared_services.start(WAITRESS, *ON)
    hostile = "<img/src=x/onerror=alert(1)>"
    assert service.get("/db-test-leak", headers=[("X-Request-ID", hostile)]).status == 200
    browser.look(service.process.admin + "/", theme, width)
    eventually(lambda: hostile in text_of(browser, "checkouts"), "it is shown as it is")
    assert browser.ask("return document.images.length") == 0
    assert browser.ask("return document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    dark = browser.ask("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (theme == "dark")
    service.process.kill()


def test_it_can_be_used_with_the_keyboard_and_is_told_to_a_screen_reader(services: Launcher, browser: Browser) -> None:
    service = services.start(WAITRESS, *ON)
    for path in ("/db-test-leak", "/db-test-leak"):
        assert service.get(path).status == 200
    browser.look(service.process.admin + "/")
    eventually(lambda: text_of(browser, "checkouts").count("leaked") == 2, "both are shown")
    from selenium.webdriver.common.keys import Keys

    for _ in range(40):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        if browser.ask("return document.activeElement.dataset.sort") == "holder":
            break
    assert browser.ask("return document.activeElement.dataset.sort") == "holder"
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.ask("return document.activeElement.closest('th').ariaSort") == "ascending"
    names = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    told = {
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in names
        if not node["ignored"] and "value" in node["role"]
    }
    assert ("meter", "connections of main in use") in told
    assert ("region", "Checked out") in told
    assert any(role == "image" and name.startswith("connections in use of the last minute") for role, name in told)
