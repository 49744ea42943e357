"""The benchmarks: a short run of each, the form of their files, and how they measure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pooldrain_compare.bench.contenders import CONTENDERS, PAIRED, PARTNERS
from pooldrain_compare.bench.noise import NoiseMeter, is_too_noisy
from pooldrain_compare.bench.recorder import Point, Recorder, rounds
from pooldrain_compare.bench.results import (
    BENCHMARKS,
    SERVERS,
    BadResultsError,
    Environment,
    Measurement,
    Noise,
    Results,
    SystemInfo,
    load,
    save,
)
from pooldrain_compare.bench.shutdown import BARE
from pooldrain_compare.bench.summary import Summary, ratio
from pooldrain_compare.bench.throughput import percentiles
from pooldrain_compare.harness.load import Exchange, Mode, Outcome
from tests.harness.waiting import BOUND

FINE, NOT_STARTED, BAD_OPTIONS = 0, 1, 2


def bench(*options: str, within: float = BOUND) -> subprocess.CompletedProcess[str]:
    """`pooldrain-compare bench` with these options."""
    command = [sys.executable, "-m", "pooldrain_compare", "bench", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=within, check=False)


# -- a short run of each


@pytest.fixture(scope="module")
def quickly(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Results]:
    """Runs a benchmark with --quick and reads its file."""

    def run(name: str) -> Results:
        output = tmp_path_factory.mktemp(name)
        ended = bench(name, "--quick", "--output", str(output), "--database-url", database_url, within=240.0)
        assert ended.returncode == FINE, ended.stderr
        assert f"Samples: {output / name}.json" in ended.stdout
        assert ended.stderr.startswith(f"{name}: "), "without a terminal, progress is told in lines"
        results = load(output / f"{name}.json")
        assert (results.benchmark, results.quick) == (name, True)
        assert results.noise.spin_ms
        assert results.environment.versions["postgresql"]
        return results

    return run


def test_shutdown_measures_every_case_and_ours_loses_nothing(quickly: Callable[[str], Results]) -> None:
    results = quickly("shutdown")
    assert {m.case for m in results.measurements} == {
        *("busy, GET /", "busy, 50 ms query", "idle", BARE, "hung request", "5 leaked connections")
    }
    ours = [m for m in results.measurements if m.system.startswith("pooldrain")]
    theirs = [m for m in results.measurements if not m.system.startswith("pooldrain")]
    assert ours
    assert theirs
    for measurement in ours:
        if measurement.metric.startswith("lost") or measurement.metric == "connections left":
            assert measurement.samples == [0], measurement
    hung = results.select(case="hung request", system="pooldrain-gunicorn", metric="refused")
    assert hung[0].samples == [1], "the hung request was cut and told so"


def test_overhead_measures_ours_beside_its_partner_everywhere(quickly: Callable[[str], Results]) -> None:
    results = quickly("overhead")
    for measurement in results.measurements:
        partner = PARTNERS.get(measurement.system)
        if partner is not None:
            beside = results.select(case=measurement.case, system=partner, metric=measurement.metric, x=measurement.x)
            assert [len(m.samples) for m in beside] == [len(measurement.samples)]
    assert set(results.systems) > {"psycopg-pool", "psycopg-pool-async", "asyncpg-pool"}


def test_throughput_answers_every_request(quickly: Callable[[str], Results]) -> None:
    results = quickly("throughput")
    assert {m.case.partition(",")[0] for m in results.measurements} >= {"read", "5 ms query", "write"}
    assert all(m.samples == [0] for m in results.select(metric="failed"))
    for name in results.systems:
        assert any(m.samples[0] > 0 for m in results.select(metric="throughput", system=name)), name
    assert all(m.samples[0] > 1 for m in results.select(metric="memory"))


def test_scale_measures_each_size(quickly: Callable[[str], Results]) -> None:
    results = quickly("scale")
    for case, system, parameter in (
        ("drain and dispose", "pooldrain-asyncio", "pool_sizes"),
        ("many checkouts", "pooldrain-asyncio", "checkouts"),
        ("hung queries", "pooldrain-asyncio", "queries"),
        ("SIGTERM, idle connections", "pooldrain-waitress", "idle_connections"),
        ("SIGTERM, requests in flight", "pooldrain-uvicorn", "in_flight"),
        ("SIGTERM, leaks", "pooldrain-gunicorn", "leaks"),
    ):
        sizes = results.parameters[parameter]
        assert isinstance(sizes, list)
        assert {m.x for m in results.select(case=case, system=system)} == set(sizes), case
    assert len(results.systems) == 10


# -- options


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("sleep",), "invalid choice: 'sleep'"),
        (("--runs", "0"), "--runs: must be 1 or more, not 0"),
        (("--runs", "many"), "--runs: must be a whole number, not 'many'"),
        (("--fast",), "unrecognized arguments: --fast"),
        (("--database-url", "sqlite:///x.db"), "must name a PostgreSQL"),
        (("--output",), "--output: expected one argument"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: tuple[str, ...], reason: str) -> None:
    ended = bench(*options)
    assert ended.returncode == BAD_OPTIONS
    assert ended.stderr.count("\n") == 1
    assert reason in ended.stderr
    assert not ended.stdout


def test_a_database_that_is_not_there_is_told_in_one_line() -> None:
    ended = bench("scale", "--quick", "--database-url", "postgresql://nobody:geheim@127.0.0.1:1/none")
    assert ended.returncode == NOT_STARTED
    assert "cannot connect to postgresql://nobody:***@127.0.0.1:1/none" in ended.stderr
    assert "geheim" not in ended.stderr + ended.stdout


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = bench("scale", "--quick", "--output", str(tmp_path / "file" / "below"), within=20.0)
    assert ended.returncode == BAD_OPTIONS
    assert ended.stderr == f"pooldrain-compare: --output {tmp_path}/file/below: Not a directory\n"


def test_every_benchmark_can_be_named_and_is_explained() -> None:
    shown = bench("--help").stdout
    assert all(f"{name}:" in shown for name in BENCHMARKS)


# -- rounds, noise, summaries


def test_rounds_alternate_and_neighbours_stay_neighbours() -> None:
    assert list(rounds("abc", 3)) == [
        *((0, "a"), (0, "b"), (0, "c")),
        *((1, "c"), (1, "b"), (1, "a")),
        *((2, "a"), (2, "b"), (2, "c")),
    ]


def test_each_of_ours_is_measured_beside_its_partner() -> None:
    assert sorted(PAIRED) == sorted(CONTENDERS) == sorted(SERVERS)
    places = {name: place for place, name in enumerate(PAIRED)}
    for ours, theirs in PARTNERS.items():
        if ours in places:
            assert abs(places[ours] - places[theirs]) == 1


def test_samples_are_kept_in_the_order_they_were_taken() -> None:
    recorder = Recorder()
    first, second = (Point("idle", name, "signal to exit", "ms") for name in ("pooldrain-uvicorn", "plain-uvicorn"))
    for point, sample in ((second, 5.0), (first, 1.0), (second, 4.0)):
        recorder.add(point, sample)
    recorder.note(first, "exit code 0")
    recorder.note(first, "exit code 0")
    recorder.note(first, "exit code 3")
    assert [(m.system, m.samples, m.note) for m in recorder.measurements()] == [
        ("plain-uvicorn", [5.0, 4.0], ""),
        ("pooldrain-uvicorn", [1.0], "exit code 0; exit code 3"),
    ]


def test_a_ratio_is_the_median_of_the_pairs() -> None:
    ours, theirs = (Measurement("c", name, "time", "us", []) for name in ("pooldrain-threads", "sqlalchemy-threads"))
    ours.samples.extend([2.0, 30.0, 4.0])  # a slow minute hit the second round
    theirs.samples.extend([1.0, 20.0, 2.0])
    assert ratio(ours, theirs) == 2.0
    theirs.samples[:] = [0.0, 0.0, 0.0]
    assert ratio(ours, theirs) is None


def test_a_summary_is_short() -> None:
    assert str(Summary.of([1.23456, 7.0, 2.0])) == "2 (1.23-7)"
    assert str(Summary.of([1234.5, 1234.5])) == "1234"
    assert str(Summary.of([0.0])) == "0"


def test_percentiles_are_of_complete_answers() -> None:
    def exchange(ms: float) -> Exchange:
        return Exchange(Outcome.ANSWERED, Mode.KEEP_ALIVE, "GET /", 10.0, 10.0 + ms / 1000, 200, "", None, False)

    measured = percentiles([exchange(float(ms)) for ms in range(1, 102)])
    assert {percent: round(ms, 6) for percent, ms in measured.items()} == {50: 51.0, 95: 96.0, 99: 100.0}
    assert percentiles([exchange(1.0)]) == {}


@pytest.mark.parametrize(
    ("spins", "noisy"),
    [
        ([4.0] * 50, False),
        ([4.0 + 0.02 * (n % 10) for n in range(50)], False),
        ([4.0] * 40 + [8.0] * 10, True),
        ([4.0], False),
    ],
)
def test_a_machine_is_too_noisy_when_one_sample_in_ten_is_slow(spins: list[float], noisy: bool) -> None:
    assert is_too_noisy(spins) is noisy


def test_the_spin_loop_is_sampled_once_an_interval() -> None:
    now = iter([0.0, 0.004, 0.5, 1.5, 1.504])  # start, end; too early; start, end
    clock = iter([*now, 2.0])
    meter = NoiseMeter(lambda: next(clock))
    for _ in range(3):
        meter.sample()
    assert meter.noise() == Noise([4.0, 4.0], too_noisy=False)


# -- the file

RESULTS = Results(
    benchmark="shutdown",
    question="What does a SIGTERM cost?",
    quick=False,
    parameters={"runs": 2, "depths": [10, 30], "every_system": True},
    environment=Environment("3.11.7", "Linux x86_64", 2, {"sqlalchemy": "2.1.9"}),
    noise=Noise([4.1, 4.2], too_noisy=False),
    systems={"plain-waitress": SystemInfo("waitress", "waitress app:app", ours=False, colour="sync")},
    measurements=[
        Measurement("busy", "plain-waitress", "lost", "requests", [29.0, 31]),
        Measurement("read", "plain-waitress", "p50", "ms", [1.5], x=4, x_name="clients", note="茶"),
        Measurement("idle", "plain-waitress", "lost", "requests", [], note="not measured"),
    ],
)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    path = save(RESULTS, tmp_path / "new")
    assert path == tmp_path / "new" / "shutdown.json"
    assert load(path) == RESULTS
    assert sum('"case"' in line for line in path.read_text("utf-8").splitlines()) == 3, "a measurement a line"


def test_measurements_are_found_by_what_they_are() -> None:
    assert RESULTS.select(metric="lost") == [RESULTS.measurements[0], RESULTS.measurements[2]]
    assert RESULTS.select(case="read", x=4) == [RESULTS.measurements[1]]
    assert RESULTS.select(system="plain-uvicorn") == []


def changed(place: str, value: Any) -> dict[str, Any]:
    """The file's content with another value at `place`."""
    content: Any = json.loads(json.dumps(asdict(RESULTS)))
    *path, last = place.split(".")
    at = content
    for part in path:
        at = at[int(part) if part.isdigit() else part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    result: dict[str, Any] = content
    return result


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("benchmark", "sleep", "benchmark must be one of shutdown, overhead, throughput, scale, not 'sleep'"),
        ("benchmark", ..., "the content must be an object with benchmark, "),
        ("extra", 1, "the content must be an object with benchmark, "),
        ("question", " ", "question must be a text that says something"),
        ("quick", "no", "quick must be true or false"),
        ("parameters.runs", {"a": 1}, "parameters.runs must be a value or a list of values"),
        ("environment.cores", 0, "environment.cores must be a whole number above 0"),
        ("environment.versions.sqlalchemy", 2, "environment.versions.sqlalchemy must be a text"),
        ("noise.spin_ms", [], "noise.spin_ms must be some numbers above 0"),
        ("systems.plain-rails", {}, "systems must be one of pooldrain-gunicorn, "),
        ("systems.plain-waitress.colour", "red", "systems.plain-waitress.colour must be one of sync, async"),
        ("systems", {}, "measurements.0.system must be one of the file's systems"),
        ("measurements.0.unit", "furlongs", "measurements.0.unit must be one of requests, ms, "),
        ("measurements.0.samples", [1, None], "measurements.0.samples.1 must be a number, not None"),
        ("measurements.0.samples", [True], "measurements.0.samples.0 must be a number, not True"),
        ("measurements.0.samples", [float("inf")], "measurements.0.samples.0 must be a number, not inf"),
        ("measurements.0.samples", [], "measurements.0.samples must be given, or a note why not"),
        ("measurements.0.x", 3, "measurements.0.x_name must be given with x, and only with it"),
        ("measurements.2.case", "busy", "measurements.2 must be measured once"),
        ("measurements.1.note", None, "measurements.1.note must be a text"),
    ],
)
def test_a_file_that_breaks_the_form_is_refused_with_the_place(
    tmp_path: Path, place: str, value: Any, reason: str
) -> None:
    path = tmp_path / "shutdown.json"
    path.write_text(json.dumps(changed(place, value)), "utf-8")
    with pytest.raises(BadResultsError) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path}: {reason}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"[]", "the content must be an object, not []")],
)
def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(BadResultsError, match=r"x\.json") as refused:
        load(path)
    assert reason in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadResultsError, match="No such file"):
        load(tmp_path / "none.json")
