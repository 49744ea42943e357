"""The container recipes of `deploy/`: valid, with the grace period that the service needs, and shown in the docs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it ships no types
import pytest
import yaml

from pooldrain.budget import Fleet
from pooldrain.policy import ShutdownPolicy
from pooldrain.runtime.options.settings import Settings, load_settings
from pooldrain.runtime.plan import manifest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KINDS = ("Deployment", "Service", "PodDisruptionBudget")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


def settings(arguments: list[str]) -> Settings:
    return load_settings("sync", arguments, {})


def test_the_manifest_is_valid_for_kubernetes() -> None:
    found = documents("kubernetes.yaml")
    assert tuple(each["kind"] for each in found) == KINDS
    for each in found:
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def test_a_mistake_in_it_would_be_found() -> None:
    deployment = documents("kubernetes.yaml")[0]
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 63
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, kubernetes_validate.latest_version(), strict=True)


def test_it_says_what_the_plan_says() -> None:
    spec = documents("kubernetes.yaml")[0]["spec"]
    chosen = settings(spec["template"]["spec"]["containers"][0]["args"])
    fleet = Fleet(
        instances=spec["replicas"],
        surge=spec["strategy"]["rollingUpdate"]["maxSurge"],
        pool_size=chosen.pool.pool_size,
        max_overflow=chosen.pool.max_overflow,
    )
    planned = yaml.safe_load(manifest(fleet, chosen))["spec"]
    assert planned["replicas"] == spec["replicas"]
    assert planned["strategy"] == spec["strategy"]
    assert planned["template"]["spec"].items() <= spec["template"]["spec"].items()
    assert f"= {max(fleet.needs().values())} connections" in (DEPLOY / "kubernetes.yaml").read_text("utf-8")


def test_the_probes_ask_where_they_are_answered() -> None:
    container = documents("kubernetes.yaml")[0]["spec"]["template"]["spec"]["containers"][0]
    chosen = settings(container["args"])
    assert container["readinessProbe"]["httpGet"]["path"] == chosen.readyz_path
    assert container["livenessProbe"]["httpGet"]["path"] == chosen.livez_path
    noticed = container["readinessProbe"]["periodSeconds"] * container["readinessProbe"]["failureThreshold"]
    assert chosen.shutdown.announce_period > noticed, "announced for longer than it takes to be noticed"
    assert chosen.binds == (("0.0.0.0", container["ports"][0]["containerPort"]),)


def test_compose_waits_as_long_as_a_shutdown_may_take() -> None:
    [compose] = documents("compose.yaml")
    shop = compose["services"]["shop"]
    assert shop["stop_grace_period"] == f"{settings(shop['command']).shutdown.ladder.termination_grace_period}s"
    assert ShutdownPolicy().ladder.termination_grace_period == 58


def test_in_the_image_the_service_is_process_1_not_root_and_nothing_compiles() -> None:
    lines = [line for line in (DEPLOY / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    last = lines[max(index for index, line in enumerate(lines) if line.startswith("FROM ")) :]
    entry = json.loads(next(line for line in last if line.startswith("ENTRYPOINT ")).removeprefix("ENTRYPOINT "))
    arguments = json.loads(next(line for line in last if line.startswith("CMD ")).removeprefix("CMD "))
    assert entry == ["/srv/venv/bin/pooldrain-sync"]
    assert settings(arguments).log_format == "json"
    assert any(re.fullmatch(r"USER [1-9]\d*", line) for line in last)
    assert not [line for line in lines if re.search(r"gcc|build-essential|apt-get|apk ", line)]


@pytest.mark.parametrize(
    ("name", "language"), [("Dockerfile", "dockerfile"), ("compose.yaml", "yaml"), ("kubernetes.yaml", "yaml")]
)
def test_a_recipe_is_what_the_documentation_shows(name: str, language: str) -> None:
    assert f"```{language}\n{(DEPLOY / name).read_text('utf-8')}```" in (
        ROOT / "docs" / "how-to" / "fleet.md"
    ).read_text("utf-8")
