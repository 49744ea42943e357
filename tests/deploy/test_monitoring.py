"""The alerts and the dashboard of `deploy/`: of metrics that there are, and as Prometheus' own tool reads them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pooldrain.admin.exposition import METRICS, metrics_table

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

# What a histogram and a counter are called in an expression.
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
NAMES = {name + suffix: labels for name, (kind, _, labels) in METRICS.items() for suffix in SUFFIXES[kind]}
# Prometheus' own, and what it adds to each sample.
OTHER_LABELS = {"instance", "job", "le"}


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    dashboard = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query")


@pytest.mark.parametrize("expression", list(expressions()))
def test_it_asks_for_metrics_and_labels_that_there_are(expression: str) -> None:
    selectors = re.findall(r"(pooldrain_\w+)(?:\{([^}]*)\})?", expression)
    assert selectors
    for name, matchers in selectors:
        assert name in NAMES, name
        assert set(re.findall(r"(\w+)=", matchers)) <= {*NAMES[name], *OTHER_LABELS}
    asked = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
    assert asked <= {*OTHER_LABELS, *(label for name, _ in selectors for label in NAMES[name])}


def test_the_documentation_lists_the_metrics_as_they_are() -> None:
    assert metrics_table() in (ROOT / "docs" / "reference" / "metrics.md").read_text("utf-8")


def test_there_is_an_alert_for_leaks_for_waits_and_for_drains() -> None:
    assert [rule["alert"] for rule in rules()] == ["PooldrainLeak", "PooldrainPoolWaits", "PooldrainDrainNearDeadline"]


def test_every_metric_is_on_the_dashboard_or_known_not_to_be() -> None:
    shown = {name for expression in expressions() for name in re.findall(r"pooldrain_\w+", expression)}
    missing = {name for name, (kind, *_) in METRICS.items() if not shown & {name + s for s in SUFFIXES[kind]}}
    assert missing == {
        "pooldrain_connections_abandoned",  # the last shutdown's are shown
        "pooldrain_connections_reclaimed",
        "pooldrain_last_shutdown_seconds",  # the sum of its phases
        "pooldrain_pool_connect_seconds",
        "pooldrain_pool_connections_closed",
        "pooldrain_pool_connections_opened",
        "pooldrain_requests_finished",
        "pooldrain_workers_ended",
    }


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        # It comes with Prometheus' package of 20 MB; whoever has it gets the rules played, the others read them above.
        assert (DEPLOY / "alerts_test.yml").is_file()
        return
    told = subprocess.run([promtool, "test", "rules", "alerts_test.yml"], cwd=DEPLOY, capture_output=True, text=True)  # noqa: PLW1510 - its output is the message
    assert told.returncode == 0, told.stdout + told.stderr
