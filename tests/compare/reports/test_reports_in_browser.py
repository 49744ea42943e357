"""The page in a real browser: light and dark, wide and narrow; and every plot as an image, as the README shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pooldrain_compare.bench.results import save
from pooldrain_compare.reports.writing import write_reports
from tests.compare.reports.synthetic import everything
from tests.harness.browser import THEMES, WIDTHS, Browser, chromium

COMMITTED = Path(__file__).parents[3] / "compare" / "reports"
KINDS = ("made up", "committed") if (COMMITTED / "index.html").is_file() else ("made up",)

# Every text of every plot with its rectangle, relative to the plot.
TEXTS = """
return [...document.querySelectorAll('svg.chart')].map(svg => ({
  plot: svg.getAttribute('aria-label').slice(0, 60),
  width: svg.viewBox.baseVal.width,
  height: svg.viewBox.baseVal.height,
  shown: svg.getBoundingClientRect().width,
  texts: [...svg.querySelectorAll('text')].map(text => {
    const box = text.getBBox();
    return {text: text.textContent, left: box.x, right: box.x + box.width, top: box.y, bottom: box.y + box.height};
  }),
}));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module", params=KINDS)
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "committed":
        return COMMITTED
    directory = tmp_path_factory.mktemp("reports")
    for results in everything().values():
        save(results, directory / "data")
    write_reports(directory)
    return directory


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_opens_without_complaint_and_fits(browser: Browser, reports: Path, theme: str, width: int) -> None:
    browser.look(reports / "index.html", theme, width)
    browser.ask("document.querySelectorAll('details').forEach(each => { each.open = true; })")

    assert browser.complaints() == []
    assert browser.ask("return document.querySelectorAll('svg.chart').length") > 10
    assert browser.ask("return [...document.images].filter(each => !each.naturalWidth).length") == 0
    assert browser.ask("return performance.getEntriesByType('resource').map(each => each.name)") == []
    root = "document.documentElement"
    assert browser.ask(f"return {root}.scrollWidth - {root}.clientWidth") == 0, "the page is wider than the screen"


@pytest.mark.parametrize("width", WIDTHS)
def test_texts_of_plots_are_within_them_and_apart_and_large_enough(browser: Browser, reports: Path, width: int) -> None:
    browser.look(reports / "index.html", "light", width)

    for plot in browser.ask(TEXTS):
        assert plot["shown"] / plot["width"] * 12 >= 10, f"{plot['plot']} is shown too small"
        for text in plot["texts"]:
            inside = text["left"] >= 0 and text["right"] <= plot["width"] and text["bottom"] <= plot["height"]
            assert inside, f"{text['text']!r} is cut off in {plot['plot']}"
        for index, one in enumerate(plot["texts"]):
            for other in plot["texts"][index + 1 :]:
                apart = one["right"] <= other["left"] or other["right"] <= one["left"]
                apart = apart or one["bottom"] <= other["top"] or other["bottom"] <= one["top"]
                assert apart, f"{one['text']!r} and {other['text']!r} overlap in {plot['plot']}"


def test_the_theme_is_the_readers(browser: Browser, reports: Path) -> None:
    seen = []
    for theme in THEMES:
        browser.look(reports / "index.html", theme, 1280)
        seen.append(
            browser.ask(
                "const style = getComputedStyle(document.body);"
                "const mark = getComputedStyle(document.querySelector('.s-pooldrain-gunicorn .dot'));"
                "return [style.backgroundColor, style.color, mark.fill]"
            )
        )

    light, dark = seen
    assert all(one != other for one, other in zip(light, dark, strict=True))


@pytest.mark.parametrize("theme", THEMES)
def test_every_plot_is_an_image(browser: Browser, reports: Path, tmp_path: Path, theme: str) -> None:
    plots = sorted((reports / "plots").glob("*.svg"))
    page = tmp_path / "plots.html"
    images = "".join(f'<img src="{plot.as_uri()}">' for plot in plots)
    page.write_text(f'<!doctype html><link rel="icon" href="data:,">{images}', encoding="utf-8")

    browser.look(page, theme, 1280)

    assert browser.complaints() == []
    assert browser.ask("return [...document.images].map(each => each.naturalWidth)") == [400] * len(plots)
