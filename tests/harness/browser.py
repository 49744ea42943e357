"""A headless Chromium that looks at pages."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

THEMES = ("light", "dark")
WIDTHS = (1280, 390)  # a desk's and a phone's
HOW_TO_INSTALL = "apt-get install --no-install-recommends chromium chromium-driver"

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@dataclass(frozen=True, slots=True)
class Browser:
    """One that runs."""

    driver: Any  # Selenium's, of whose methods some are not typed

    def look(self, page: Path | str, theme: str = "light", width: int = WIDTHS[0]) -> None:
        """Open a page, a file or a URL; what the console said before is forgotten."""
        preference = {"name": "prefers-color-scheme", "value": theme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preference]})
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.complaints()
        self.driver.get(page if isinstance(page, str) else page.as_uri())

    def ask(self, script: str) -> Any:
        """Run a script in the page and return what it returns."""
        return self.driver.execute_script(script)

    def complaints(self) -> list[str]:
        """What the console says, and has not said before."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]


@contextlib.contextmanager
def chromium(profile: Path) -> Generator[Browser]:
    """Run it with a profile of its own; fails with the command to install it when there is none."""
    binary = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.fail(f"pages are looked at in Chromium, which is not here; as root: {HOW_TO_INSTALL}", False)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for option in (*_OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")  # the driver listens there
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield Browser(browser)
        finally:
            browser.quit()
