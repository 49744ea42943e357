"""OpenTelemetry: an application that exports its metrics exports ours as well, and its shutdown's, on every server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pooldrain.meter import BOUNDS, Histogram, spread
from pooldrain_compare.harness.servers import EVERY_WAY, Backend
from tests.harness.service import Launcher, Service

APP = "tests.servers.telemetry_app"
REQUESTS = 7

every_way = pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)


def start(services: Launcher, backend: Backend, exported: Path, **environment: str) -> Service:
    colour = backend.module.removeprefix("pooldrain_")
    service = services.prepare(backend, "--app", f"{APP}:create_{colour}", "--pool-size", "3")
    service.process.environment.update({"EXPORTED": str(exported), **environment})
    services.enter(service)
    return service


def exports(path: Path) -> list[dict[str, Any]]:
    """Each export's metrics, by name: unit and data."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        [resource] = json.loads(line)["resource_metrics"]
        scopes = [scope for scope in resource["scope_metrics"] if scope["scope"]["name"] == "pooldrain"]
        found.append({metric["name"]: metric for scope in scopes for metric in scope["metrics"]})
    return found


def points(metric: dict[str, Any], **attributes: object) -> list[dict[str, Any]]:
    wanted = {name.replace("__", "."): value for name, value in attributes.items()}
    every: list[dict[str, Any]] = metric["data"]["data_points"]
    return [point for point in every if wanted.items() <= point["attributes"].items()]


@every_way
def test_what_is_exported_at_the_end_tells_of_requests_pools_and_the_shutdown(
    services: Launcher, backend: Backend, tmp_path: Path
) -> None:
    service = start(services, backend, tmp_path / "exported")
    for _ in range(REQUESTS):
        assert service.get("/select").status == 200
    service.send_signal()
    assert service.ended().code == 0
    last = exports(tmp_path / "exported")
    assert len(last) == backend.workers, "one export each, at its end"
    waits = [p for each in last for p in points(each["db.client.connection.wait_time"])]
    assert all(point["attributes"] == {"db.client.connection.pool.name": "main"} for point in waits)
    assert all(point["explicit_bounds"] == list(BOUNDS) for point in waits)
    durations = [p for each in last if "http.server.request.duration" in each
                 for p in points(each["http.server.request.duration"])]  # fmt: skip
    assert sum(point["count"] for point in durations) == REQUESTS
    assert all(
        point["attributes"] == {"http.request.method": "GET", "http.response.status_code": 200, "url.scheme": "http"}
        for point in durations
    )
    finished = [points(each["pooldrain.requests"], pooldrain__outcome="finished")[0]["value"] for each in last]
    assert sum(finished) == REQUESTS
    for each in last:
        units = {name: metric["unit"] for name, metric in each.items()}
        assert units["db.client.connection.count"] == "{connection}"
        assert units["db.client.connection.wait_time"] == "s"
        [most] = points(each["db.client.connection.max"])
        assert most["value"] == 3 + 20
        [closed] = points(each["pooldrain.phase"], pooldrain__phase="CLOSED")
        assert closed["value"] == 1, "it is the shutdown's end that is exported"
        assert points(each["pooldrain.phase.duration"], pooldrain__phase="DISPOSING")


def test_an_exporter_that_hangs_delays_the_end_by_half_a_second_and_changes_nothing(
    services: Launcher, backend: Backend, tmp_path: Path
) -> None:
    service = start(services, backend, tmp_path / "exported", HANGS="1")
    sent = service.send_signal()
    ended = service.ended()
    assert ended.code == 0
    assert ended.at - sent < 5.0, "it would hang for a minute"
    assert any("the last export has not ended within 0.5 s" in line for line in service.complaints)


@pytest.mark.parametrize(
    "seconds",
    [
        [0.00002] * 9,
        [0.0003, 0.0004, 0.002],
        [0.05, 0.05, 0.1],
        [0.002, 31.0, 47.0],
        [100.0],
        [0.0, 0.0],
        [0.0001, 0.0005, 0.001, 0.005, 30.0],
    ],
)
def test_durations_are_told_again_one_by_one_without_changing_a_bucket_or_the_sum(seconds: list[float]) -> None:
    told, again = Histogram(), Histogram()
    before = told.data()
    for each in seconds:
        told.observe(each)
    for each, times in spread(before, told.data()):
        for _ in range(times):
            again.observe(each)
    assert again.counts == told.counts
    assert again.sum == pytest.approx(told.sum, abs=1e-6, rel=0.02)
