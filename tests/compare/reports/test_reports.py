"""The reports: drawn from the samples beside them and from nothing else."""

from __future__ import annotations

import filecmp
import re
import shutil
import statistics
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pooldrain.errors import ConfigurationError
from pooldrain_compare import cli
from pooldrain_compare.bench.results import BENCHMARKS, POOLS, SERVERS, Measurement, Results, load, save
from pooldrain_compare.bench.throughput import READ
from pooldrain_compare.reports import palette
from pooldrain_compare.reports.evidence import Evidence
from pooldrain_compare.reports.reasons import FEW, reason
from pooldrain_compare.reports.report import Report, build
from pooldrain_compare.reports.rivals import beaten
from pooldrain_compare.reports.sentences import Name, Sentence
from pooldrain_compare.reports.targets import Target
from pooldrain_compare.reports.writing import write_reports
from tests.compare.reports.synthetic import everything, with_samples

COMMITTED = Path(__file__).parents[3] / "compare" / "reports"
SAMPLES = sorted((COMMITTED / "data").glob("*.json"))


def report_of(results: dict[str, Results]) -> Report:
    return build(Evidence(results), parity=False)


def prose(report: Report) -> list[Sentence]:
    """Every sentence that is computed."""
    sentences = list(report.lead)
    for answer in report.answers:
        sentences += [answer.headline, *answer.details]
    return sentences + [sentence for section in report.sections for sentence in section.sentences]


def first_paragraph(report: Report) -> str:
    return " ".join(map(str, report.lead))


def files(directory: Path) -> dict[str, bytes]:
    paths = [directory / "index.html", directory / "README.md", *sorted((directory / "plots").glob("*"))]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def write(directory: Path, results: dict[str, Results]) -> Path:
    for each in results.values():
        save(each, directory / "data")
    write_reports(directory)
    return directory


# --- what is committed ----------------------------------------------------------------------------------


def test_what_is_committed_is_what_the_committed_samples_make(tmp_path: Path) -> None:
    assert [path.stem for path in SAMPLES] == sorted(BENCHMARKS)
    shutil.copytree(COMMITTED / "data", tmp_path / "data")
    if (COMMITTED / "parity.md").exists():
        shutil.copy(COMMITTED / "parity.md", tmp_path)

    write_reports(tmp_path)

    assert files(tmp_path).keys() == files(COMMITTED).keys()
    different = [name for name in files(tmp_path) if not filecmp.cmp(tmp_path / name, COMMITTED / name, shallow=False)]
    assert different == [], "run pooldrain-compare report"


def test_what_is_committed_answers_everything() -> None:
    evidence = Evidence.read(COMMITTED / "data")
    report = build(evidence, parity=True)

    assert list(evidence.results) == list(BENCHMARKS)
    assert not any(results.quick for results in evidence.results.values())
    assert all(verdict.met is not None for verdict in report.targets)
    assert all(answer.details for answer in report.answers)


# --- the same data, the same bytes ----------------------------------------------------------------------


def test_the_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    assert files(write(tmp_path / "one", everything())) == files(write(tmp_path / "two", everything()))


def test_plots_that_are_not_drawn_any_more_are_removed(tmp_path: Path) -> None:
    write(tmp_path, everything())
    stale = tmp_path / "plots" / "stale.svg"
    stale.touch()

    write_reports(tmp_path)

    assert not stale.exists()


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = (write(tmp_path, everything()) / "index.html").read_text("utf-8")

    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(""", page)


def test_plots_of_the_readme_are_there_and_all_of_them_are_shown(tmp_path: Path) -> None:
    readme = (write(tmp_path, everything()) / "README.md").read_text("utf-8")

    shown = re.findall(r"]\((plots/[^)]+)\)", readme)
    assert sorted(shown) == sorted(f"plots/{path.name}" for path in (tmp_path / "plots").iterdir())


def test_every_plot_says_what_it_shows_and_in_which_unit() -> None:
    for chart in report_of(everything()).charts:
        root = ET.fromstring(chart.file)
        texts = {text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")}

        assert root.get("aria-label", "").startswith(chart.title)
        assert any(re.match(r"milli|microseconds|seconds|requests|connections|kB|mega|%", text) for text in texts)
        assert {label for label in labels(chart.systems) if not any(text.startswith(label) for text in texts)} == set()


def labels(systems: Iterable[str]) -> set[str]:
    known = {name: info.label for results in everything().values() for name, info in results.systems.items()}
    return {known[system] for system in systems}


# --- numbers in the prose -------------------------------------------------------------------------------


def test_no_number_can_be_typed_into_a_sentence() -> None:
    with pytest.raises(ValueError, match="computed, not typed"):
        Sentence("it takes 3 ms")


def test_every_number_in_the_prose_is_a_figure_or_a_name_of_the_data() -> None:
    results = everything()
    report = report_of(results)
    known = {info.label for each in results.values() for info in each.systems.values()}
    known |= {each.case for every in results.values() for each in every.measurements}

    for sentence in prose(report):
        for part in sentence.flat():
            if isinstance(part, Name) and re.search(r"\d", part.text):
                words = {part.text.lower()} | set(part.text.lower().split(", "))
                named = {name.lower() for name in known}
                assert words & named or "detail=1" in part.text or part.text == "p99", part.text


def test_a_figure_reads_as_its_value() -> None:
    for sentence in prose(report_of(everything())):
        for figure in sentence.figures():
            digits = re.findall(r"[\d,]*\.?\d+", figure.text)[-1].replace(",", "")
            shown, value = float(digits), abs(figure.value)
            scaled = [value * 1000.0**power for power in range(-2, 2)] + [value * 100]
            assert any(shown == pytest.approx(each, rel=0.06, abs=0.006) for each in scaled), (figure, str(sentence))


def test_medians_and_bounds_are_those_of_the_samples(tmp_path: Path) -> None:
    results = everything()
    samples = results["shutdown"].select(case="idle", system="plain-uvicorn", metric="signal to exit")[0].samples
    text = (write(tmp_path, results) / "README.md").read_text("utf-8")

    median, least, greatest = (f"{f(samples):.0f}" for f in (statistics.median, min, max))
    assert re.search(rf"{median} ms<br><sub>{least}–{greatest}", text)


def test_a_change_in_the_samples_is_a_change_in_the_text() -> None:
    def lossy(measurement: Measurement) -> list[float]:
        loses = (measurement.case, measurement.system, measurement.metric) == (
            "busy, GET /",
            "pooldrain-waitress",
            "lost",
        )
        return [*measurement.samples[:-1], 7.0] if loses else measurement.samples

    results = everything()
    before = report_of(results)
    after = report_of(results | {"shutdown": with_samples(results["shutdown"], lossy)})

    assert "lost 0 of" in str(before.answers[0].headline)
    assert "lost 7 of" in str(after.answers[0].headline)
    assert [verdict.text for verdict in (before.targets[0], after.targets[0])] == ["met", "missed by 7"]
    assert "it misses “Requests lost at a shutdown, worst run” by 7" in first_paragraph(after)


@pytest.mark.parametrize(
    ("theirs", "why"),
    [
        pytest.param(90.0, "it lets some clients wait for long", id="slower in the slowest"),
        pytest.param(10.0, "gate, ledger and run slots", id="quicker in all"),
    ],
)
def test_why_a_baseline_has_the_lower_median_depends_on_whose_slowest_requests_are_slower(
    theirs: float, why: str
) -> None:
    def scaled(measurement: Measurement) -> list[float]:
        value = theirs if measurement.metric == "p99" else 5.0
        if measurement.system.startswith("pooldrain"):
            value = 20.0
        return [value] * len(measurement.samples)

    results = everything()
    evidence = Evidence({"throughput": with_samples(results["throughput"], scaled)})
    duels = [duel for duel in beaten(evidence) if (duel.ours.metric, duel.theirs.system) == ("p50", "plain-waitress")]

    assert duels
    assert all(str(reason(evidence, duel)).startswith(why) for duel in duels)


def test_a_baseline_that_is_better_for_no_known_reason_is_counted_as_such() -> None:
    def slow(measurement: Measurement) -> list[float]:
        ours = measurement.metric == "dispose" and measurement.system.startswith("pooldrain")
        return [each * 1000 for each in measurement.samples] if ours else measurement.samples

    evidence = Evidence({"scale": with_samples(everything()["scale"], slow)})
    unknown = next(each for each in build(evidence, parity=False).targets if "known reason" in each.target.aim)

    assert unknown.worst == sum((duel.ours.x or 0) <= FEW for duel in evidence.duels("scale", "dispose")) > 0


def test_a_target_that_is_missed_says_why_and_one_that_is_met_does_not() -> None:
    def found(value: float) -> Callable[[Evidence], Iterator[tuple[float, Name]]]:
        return lambda evidence: iter([(1.0, Name("here")), (value, Name("there"))])

    missed, met = (
        Target("Latency", 10, "ms", found(value), why=Sentence("it waits for a disk")).compare(Evidence({}))
        for value in (12.5, 10.0)
    )

    assert (missed.text, str(missed.where), missed.why) == ("missed by 2.5 ms", "there", "it waits for a disk")
    assert (met.text, met.why) == ("met", "")


def test_a_limit_from_below_is_missed_by_what_is_less() -> None:
    def found(evidence: Evidence) -> Iterator[tuple[float, Name]]:
        return iter([(3.0, Name("here")), (2.0, Name("there"))])

    met, missed = (Target("Speed", limit, "s", found, least=True).compare(Evidence({})) for limit in (2.0, 2.5))

    assert (met.limit, met.text) == ("≥\u00a02\u00a0s", "met")
    assert (missed.text, str(missed.where)) == ("missed by 0.50 s", "there")


def test_the_first_screen_is_three_sentences_and_two_pictures(tmp_path: Path) -> None:
    results = everything()
    readme = (write(tmp_path, results) / "README.md").read_text("utf-8")
    first = readme.partition("pooldrain meets")[0].strip().splitlines()

    assert [line for line in first[1:] if line] == [
        *(line for line in first if line.startswith(("Under load", "While nothing", "pooldrain · "))),
        *(line for line in first if line.startswith("![")),
    ]
    assert [chart.name for chart in report_of(results).overview] == ["overview-lost", "overview-throughput"]
    of_gunicorn = r"pooldrain · gunicorn, nothing 3\d\d %"
    assert re.search(of_gunicorn, report_of(results).overview[1].alt)


def test_the_first_paragraph_says_where_a_baseline_is_better() -> None:
    def quick(measurement: Measurement) -> list[float]:
        hers = (measurement.case, measurement.system, measurement.metric) == ("idle", "hypercorn", "signal to exit")
        return [0.5] * len(measurement.samples) if hers else measurement.samples

    results = everything()
    assert "hypercorn" not in first_paragraph(report_of(results))

    after = report_of(results | {"shutdown": with_samples(results["shutdown"], quick)})

    assert "hypercorn ends sooner after the signal (idle: 0.50 ms against" in first_paragraph(after)
    assert any(row[0].text == "hypercorn" for row in after.better.rows)


def test_the_crossover_says_who_leads_where_and_what_may_be_chance() -> None:
    rates = {
        "pooldrain-uvicorn": ([200.0, 210.0, 220.0], [50.0, 62.0, 70.0]),
        "pooldrain-waitress": ([100.0, 110.0, 120.0], [60.0, 65.0, 75.0]),
        "pooldrain-gunicorn": ([10.0, 11.0, 12.0], [10.0, 11.0, 12.0]),
    }

    def crossing(measurement: Measurement) -> list[float]:
        if measurement.metric != "throughput" or measurement.case != READ or measurement.system not in rates:
            return measurement.samples
        return rates[measurement.system][(measurement.x or 0) > 8]

    results = everything()
    [sentence] = [
        str(each)
        for each in report_of(results | {"throughput": with_samples(results["throughput"], crossing)})
        .answers[2]
        .details
        if str(each).startswith("Read, by clients:")
    ]

    assert "leading are pooldrain · uvicorn at 1–8 and pooldrain · waitress at 16–256 (within the noise);" in sentence
    assert "the peak is 210/s with" in sentence


def test_sessions_that_nobody_leaves_are_nobodys_merit() -> None:
    def none_left(measurement: Measurement) -> list[float]:
        return [0.0] * len(measurement.samples) if measurement.metric == "connections left" else measurement.samples

    results = everything()
    before = report_of(results).answers[0].details
    after = report_of({"shutdown": with_samples(results["shutdown"], none_left)}).answers[0].details

    assert any("it leaves 0 sessions" in str(each) for each in before)
    assert any("no session is left on the database server" in str(each) for each in after)


def test_what_cannot_be_told_apart_is_no_victory() -> None:
    def overlapping(measurement: Measurement) -> list[float]:
        return [1.0, 2.0, 3.0] if measurement.system.startswith("pooldrain") else [1.0, 1.9, 3.0]

    results = {name: with_samples(each, overlapping) for name, each in everything().items()}

    assert "No baseline is better in any of" in first_paragraph(report_of(results))


# --- what was not measured ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_that_is_missing_is_said_to_be(name: str, tmp_path: Path) -> None:
    results = everything()
    del results[name]

    write(tmp_path, results)

    section = next(each for each in report_of(results).sections if each.name == name)
    assert section.missing
    assert f"**Not measured.** `pooldrain-compare bench {name}`" in (tmp_path / "README.md").read_text("utf-8")
    assert "Not measured." in (tmp_path / "index.html").read_text("utf-8")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_only_one_benchmark_makes_a_report_too(name: str, tmp_path: Path) -> None:
    write(tmp_path, {name: everything()[name]})

    assert "not measured" in (tmp_path / "README.md").read_text("utf-8").lower()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_any_metric_or_system_may_be_missing(name: str) -> None:
    results = everything()
    every = results[name].measurements
    for kept in (
        *([m for m in every if m.metric != metric] for metric in {m.metric for m in every}),
        *([m for m in every if m.system != system] for system in {m.system for m in every}),
        *([m for m in every if m.case != case] for case in {m.case for m in every}),
        [m for m in every if m.system.startswith("pooldrain")],
        [m for m in every if not m.system.startswith("pooldrain")],
        [],
    ):
        report_of({name: replace(results[name], measurements=kept)})


def test_the_reason_why_there_are_no_samples_is_told(tmp_path: Path) -> None:
    results = everything()
    measurements = [
        replace(each, samples=[], note="did not start") if each.system == "hypercorn" else each
        for each in results["shutdown"].measurements
    ]

    write(tmp_path, results | {"shutdown": replace(results["shutdown"], measurements=measurements)})

    assert "not measured<br><sub>did not start</sub>" in (tmp_path / "README.md").read_text("utf-8")


# A difference may be negative, and what is too short to be seen zero.
@pytest.mark.parametrize("sample", [0.0, 1.0, -1.0])
def test_one_sample_makes_a_report_too(sample: float) -> None:
    def only(measurement: Measurement) -> list[float]:
        return [sample]

    report_of({name: with_samples(each, only) for name, each in everything().items()})


def test_noise_and_smoke_runs_are_told(tmp_path: Path) -> None:
    results = everything()
    noisy = replace(results["overhead"], quick=True, noise=replace(results["overhead"].noise, too_noisy=True))

    write(tmp_path, results | {"overhead": noisy})

    for name in ("README.md", "index.html"):
        text = (tmp_path / name).read_text("utf-8")
        assert "smoke run" in text
        assert "too noisy to tell" in text


def test_the_parity_report_is_linked_when_it_is_there(tmp_path: Path) -> None:
    assert "parity.md" not in (write(tmp_path, everything()) / "README.md").read_text("utf-8")
    (tmp_path / "parity.md").touch()

    write_reports(tmp_path)

    assert "[parity.md](parity.md)" in (tmp_path / "README.md").read_text("utf-8")
    assert 'href="parity.md"' in (tmp_path / "index.html").read_text("utf-8")


def test_without_any_results_there_is_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match="there are no results"):
        write_reports(tmp_path)

    monkeypatch.chdir(tmp_path)
    assert cli.run(["report"]) == 2
    assert "there are no results in compare/reports/data" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "compare" / "reports"
    for results in everything().values():
        save(results, directory / "data")

    monkeypatch.chdir(tmp_path)
    assert cli.run(["report"]) == 0

    assert load(directory / "data" / "scale.json").benchmark == "scale"
    assert "compare/reports/index.html" in capsys.readouterr().out
    assert (directory / "README.md").is_file()


# --- colours --------------------------------------------------------------------------------------------


def contrast(one: str, other: str) -> float:
    """As the WCAG define it."""
    first, second = sorted((luminance(one), luminance(other)))
    return (second + 0.05) / (first + 0.05)


def luminance(colour: str) -> float:
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_marks_and_texts_stand_out(theme: str) -> None:
    def shade(colour: palette.Colour) -> str:
        value: str = getattr(colour, theme)
        return value

    for system, colour in palette.SYSTEMS.items():
        assert contrast(shade(colour), shade(palette.SURFACE)) >= 3, system
    for text in (palette.INK, palette.MUTED, palette.LINK, palette.GOOD, palette.BAD):
        assert contrast(shade(text), shade(palette.SURFACE)) >= 4.5
        assert contrast(shade(text), shade(palette.PAGE)) >= 4.5
    assert contrast(shade(palette.INK), shade(palette.WARNING)) >= 4.5


@pytest.mark.parametrize("systems", [SERVERS, POOLS], ids=["servers", "pools"])
def test_every_system_has_a_colour_of_its_own(systems: tuple[str, ...]) -> None:
    colours = [palette.SYSTEMS[system] for system in systems]

    assert len({colour.light for colour in colours}) == len(systems)
    assert len({colour.dark for colour in colours}) == len(systems)
