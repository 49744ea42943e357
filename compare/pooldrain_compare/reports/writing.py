"""Writes the reports: page, README and plots, from the samples beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from pooldrain.errors import ConfigurationError
from pooldrain_compare.reports.charts import SHAPES
from pooldrain_compare.reports.evidence import Evidence
from pooldrain_compare.reports.figures import Figure
from pooldrain_compare.reports.markdown import METHOD, readme
from pooldrain_compare.reports.palette import page_style
from pooldrain_compare.reports.report import Report, build
from pooldrain_compare.reports.sentences import Sentence

DIRECTORY = Path("compare") / "reports"
PARITY = "parity.md"
_DOT = "\u00a0·\u00a0"  # within a name


def write_reports(directory: Path = DIRECTORY) -> list[Path]:
    """Write them from `directory`/data/*.json; raises ConfigurationError when there is nothing to report.

    Returns the files, in a stable order. Plots of an earlier run that are not drawn any more are removed.
    """
    evidence = Evidence.read(directory / "data")
    if not evidence.results:
        raise ConfigurationError(f"there are no results in {directory / 'data'}; pooldrain-compare bench writes some")
    report = build(evidence, parity=(directory / PARITY).is_file())
    files = {directory / "index.html": page(report), directory / "README.md": readme(report)}
    files |= {directory / "plots" / f"{chart.name}.svg": chart.file for chart in report.charts}
    shutil.rmtree(directory / "plots", ignore_errors=True)
    (directory / "plots").mkdir(parents=True)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    return list(files)


def page(report: Report) -> str:
    """The HTML page, which needs nothing but itself."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pooldrain_compare.reports"),
        autoescape=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["prose"] = _prose
    sheet = environment.get_template("page.css").render()
    style = f"{sheet}{SHAPES}\n{page_style()}"
    return environment.get_template("page.html.jinja").render(report=report, method=METHOD, style=style)


def _prose(sentence: Sentence) -> Markup:
    """A sentence with its numbers set off."""
    parts = (
        Markup("<b>{}</b>").format(part) if isinstance(part, Figure) else escape(str(part).replace(" · ", _DOT))
        for part in sentence.flat()
    )
    return Markup("").join(parts)
