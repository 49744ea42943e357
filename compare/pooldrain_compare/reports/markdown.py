"""The README of the reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pooldrain_compare.reports.charts import Chart
from pooldrain_compare.reports.report import Report, Section, Table

METHOD = """\
Everything runs as real processes against one real PostgreSQL on the same machine. The systems take turns, round by \
round, in alternating order, so that a slow minute hits all alike. Nothing is measured while another benchmark runs.
Baselines are configured as their own documentation advises; how each is run stands below its benchmark.
Every sample is kept. Medians are shown with the least and the greatest sample; where two systems were measured in \
pairs, differences and ratios are taken pair by pair.
A baseline is held against pooldrain on the same server or pool, or else against the best of pooldrain's that is \
written for threads or for asyncio, as it is. A ratio (×) is the baseline's median to that.
Better means a better median, with neither median within the other's range: what cannot be told apart is not counted.
Noise is what a fixed loop took, sampled all through the run.
""".splitlines()
_SPECIAL = re.compile(r"([\\`*_\[\]<>|])")


def readme(report: Report) -> str:
    """All of it."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield from ("# What pooldrain saves, what it costs, which backend to run", "")
    for answer in report.answers:
        yield from (_escape(str(answer.headline)), "")
    yield from (*map(_image, report.overview), "")
    yield from (" ".join(_escape(str(each)) for each in report.lead), "")
    for warning in report.warnings:
        yield from (f"> **Mind:** {_escape(warning)}", "")
    for answer in report.answers:
        yield from (f"## {answer.question}", "")
        yield from _bullets(map(str, answer.details or [answer.headline]))
    yield from ("The same as a page, with every plot and table: [index.html](index.html).", "")
    yield from _targets(report)
    for section in report.sections:
        yield from _section(section)
    yield from _method(report)


def _targets(report: Report) -> Iterator[str]:
    yield from ("## Targets", "", "What the project set itself. The worst of its servers and pools counts.", "")
    yield from ("| What | Target | Measured | Verdict |", "|---|---|---|---|")
    for each in report.targets:
        where = f" ({each.where})" if each.where else ""
        cells = (each.target.aim, each.limit, f"{each.measured}{where}", f"{each.text}. {each.why}".rstrip(". "))
        yield f"| {' | '.join(map(_escape, cells))} |"
    yield ""
    if report.better.rows:
        yield from _details("Where a baseline is better", [report.better])


def _section(section: Section) -> Iterator[str]:
    yield from (f"## {section.name.capitalize()}: {_escape(section.question)}", "")
    if section.missing:
        yield from (f"**Not measured.** `pooldrain-compare bench {section.name}` measures it.", "")
        return
    if section.warning:
        yield from (f"> **Mind:** {_escape(section.warning)}", "")
    yield from _bullets(map(str, section.sentences))
    yield from map(_image, section.charts)
    yield ""
    yield from _details("All numbers", section.tables)
    yield from ("<details><summary>How it was run</summary>", "")
    yield from _bullets(f"{name}: {value}" for name, value in section.facts)
    yield from ("| System | How |", "|---|---|")
    yield from (f"| {_escape(label)} | {_code(recipe)} |" for _, label, recipe in section.recipes)
    yield from ("", "</details>", "")


def _method(report: Report) -> Iterator[str]:
    yield from ("## Method", "")
    yield from _bullets(METHOD)
    yield from ("Machine: " + "; ".join(map(_escape, report.machines)) + ".", "")
    yield from ("Versions: " + ", ".join(f"{name} {version}" for name, version in report.versions) + ".", "")
    samples = ", ".join(f"[{each}]({each})" for each in report.data)
    yield from (
        "To reproduce: `make bench` measures everything, `pooldrain-compare bench NAME` one benchmark,",
        f"`pooldrain-compare report` writes these pages anew. Every sample: {samples}.",
        "",
    )
    if report.parity:
        yield "Do all backends drain and dispose alike? See [parity.md](parity.md)."


def _bullets(lines: Iterable[str]) -> Iterator[str]:
    yield from (f"- {_escape(line)}" for line in lines)
    yield ""


def _image(chart: Chart) -> str:
    return f"![{_escape(chart.alt)}](plots/{chart.name}.svg)"


def _details(title: str, tables: Iterable[Table]) -> Iterator[str]:
    yield from (f"<details><summary>{title}</summary>", "")
    for table in tables:
        yield from (f"**{_escape(table.caption)}**", "")
        yield f"| {' | '.join(map(_escape, table.header))} |"
        yield f"|---|{('---|' if table.wordy else '---:|') * (len(table.header) - 1)}"
        for row in table.rows:
            cells = (
                _escape(cell.text) + (f"<br><sub>{_escape(cell.small)}</sub>" if cell.small else "") for cell in row
            )
            yield f"| {' | '.join(cells)} |"
        yield ""
    yield from ("</details>", "")


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`"
