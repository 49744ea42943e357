"""The baselines: each starts, serves the demo's routes and stops as its documentation says."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pooldrain_compare.bench.contenders import CONTENDERS, Theirs
from pooldrain_compare.harness.witness import Witness
from tests.harness.waiting import BOUND

# What the process ends with after a SIGTERM: uvicorn raises the signal again, waitress and cheroot do not
# handle it at all.
EXIT_CODES = {
    "plain-gunicorn": 0,
    "plain-waitress": -signal.SIGTERM,
    "plain-uvicorn": -signal.SIGTERM,
    "gunicorn-uvicorn-worker": 0,
    "granian-wsgi": 0,
    "cheroot": -signal.SIGTERM,
    "granian-asgi": 0,
    "hypercorn": 0,
    "poll-flag": -signal.SIGTERM,
}


def ask(address: tuple[str, int], method: str, target: str, body: Any = None) -> tuple[int, Any]:
    """One request: status and JSON."""
    connection = http.client.HTTPConnection(*address, timeout=BOUND)
    try:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("name", EXIT_CODES)
def test_a_baseline_serves_the_demo_and_stops_as_documented(name: str, database_url: str, tmp_path: Path) -> None:
    contender = CONTENDERS[name]
    order = {"id": f"baseline-{name}", "item": "茶", "quantity": 2}
    with Witness(database_url) as witness:
        witness.create_orders()
        try:
            with contender.process(database_url, tmp_path) as process:
                status, root = ask(process.address, "GET", "/")
                assert (status, root["pool_status"]["pool_size"]) == (200, 10)
                assert ask(process.address, "GET", "/db-test")[1]["result"] == 1
                assert ask(process.address, "GET", "/work?ms=5") == (200, {"status": "success", "ms": 5})
                assert ask(process.address, "POST", "/orders", order) == (201, order)
                assert witness.orders(f"baseline-{name}") == {f"baseline-{name}": 1}
                assert ask(process.address, "GET", "/db-test-leak")[0] == 200
                assert ask(process.address, "GET", "/")[1]["pool_status"]["checkedout"] == 1
                process.signal()
                assert process.wait(BOUND).code == EXIT_CODES[name]
            assert witness.await_none(contender.sessions, BOUND).finally_ == 0
        finally:
            witness.remove_orders(f"baseline-{name}")


def test_every_baseline_is_tried() -> None:
    assert set(EXIT_CODES) == {name for name, contender in CONTENDERS.items() if isinstance(contender, Theirs)}


def test_a_recipe_is_what_a_user_would_type() -> None:
    recipes = {name: contender.info.recipe for name, contender in CONTENDERS.items()}
    assert recipes["plain-uvicorn"] == (
        "uvicorn --port 8000 --no-access-log fastapi_lifespan:app; engine.dispose() at the end of the lifespan"
    )
    ours = "pooldrain-sync --server gunicorn --threads 40 --app flask_service:flask_app"
    assert recipes["pooldrain-gunicorn"] == ours
    assert not any("/" in recipe.replace("/ ", "") for recipe in recipes.values()), "no paths of this machine"


@pytest.mark.parametrize(("module", "other"), [("flask_service", "fastapi"), ("fastapi_service", "flask")])
def test_our_servers_load_no_framework_that_their_baseline_does_not(module: str, other: str) -> None:
    script = f"import sys, pooldrain_compare.bench.{module}; sys.exit({other!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
