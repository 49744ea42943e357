"""`make apps`: MLflow's server, which nobody here wrote, unchanged, under both commands and on every server.

It is installed from PyPI into an environment of its own (`.venv-apps`), with pooldrain. What has to hold: under load a
SIGTERM loses no request, whatever was answered is in the database, its engine is closed and no session is left, a leak
that is planted is named by its own file and line.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pooldrain.runtime.embedded import EmbeddedDatabase
from pooldrain_compare.harness.load import LoadClient, Outcome, Request
from pooldrain_compare.harness.processes import ServerProcess, clean_environment
from pooldrain_compare.harness.servers import GUNICORN, GUNICORN_2, UVICORN, UVICORN_2, WAITRESS, Backend
from tests.harness.postgres import Postgres
from tests.harness.waiting import eventually

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(os.environ.get("APPS_VENV", ROOT / ".venv-apps"))
PYTHON = ENVIRONMENT / "bin" / "python"
NEEDED = ("mlflow>=3.1", "psycopg2-binary")
APPS = {"sync": "mlflow.server:app", "async": "mlflow.server.fastapi_app:app"}
CLIENTS = 8
ANSWERS = 60  # before the signal
LOOK = 2.0  # seconds
START_TIMEOUT = 120.0  # seconds: it imports half of PyPI
ANSWERING = "MLflow's server answers"


def main() -> int:
    """Play everything; 0 if all of it holds."""
    _install()
    failures = 0
    with tempfile.TemporaryDirectory(prefix="pooldrain-apps-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        place.chmod(0o755)
        with EmbeddedDatabase(place / "pgdata") as url, closing(Postgres(url)) as postgres:
            for backend in (GUNICORN, GUNICORN_2, WAITRESS, UVICORN, UVICORN_2):
                for what in (_under_load, _planted):
                    database = postgres.new_database()
                    found = what(_Played(backend, postgres, postgres.url_of(database), place, database))
                    failures += len(found)
                    name = what.__name__.strip("_").replace("_", " ")
                    _say(f"{backend.name:<20} {name:<12} {'ok' if not found else '; '.join(found)}")
    return 1 if failures else 0


class _Played:
    """One service of MLflow's, on a database of its own."""

    def __init__(self, backend: Backend, postgres: Postgres, url: str, place: Path, name: str) -> None:
        self.backend = backend
        self.postgres = postgres
        self.url = url
        self.directory = place / name
        self.directory.mkdir()
        self.colour = backend.module.removeprefix("pooldrain_")
        theirs = url.replace("postgresql://", "postgresql+psycopg2://", 1)
        _run(PYTHON, "-m", "mlflow", "db", "upgrade", theirs)
        self.environment = {
            "_MLFLOW_SERVER_FILE_STORE": theirs,
            "_MLFLOW_SERVER_REGISTRY_STORE": theirs,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": str(self.directory / "artifacts"),
            "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true",
            "PLANTED": self.colour,
        }

    def process(self, app: str, *options: str) -> ServerProcess:
        command = [PYTHON, "-m", self.backend.module, app, *self.backend.options, "--bind", "127.0.0.1:0"]
        files = ["--log-format", "json", "--report", self.report_file, "--pool-size", "3"]
        return ServerProcess(
            [*map(str, command), *map(str, files), *options],
            log=self.directory / "log",
            environment=self.environment,
            start_timeout=START_TIMEOUT,
        )

    @property
    def report_file(self) -> Path:
        return self.directory / "report.json"

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.report_file.read_text("utf-8"))
        return report

    def sessions(self) -> int:
        """Of MLflow, on the database server; not of those who look."""
        return len(self.postgres.run("SELECT 1 FROM pg_stat_activity WHERE datname = %s", self.directory.name))


def _experiments(client: int) -> Iterator[Request]:
    """New experiments, each with a name of its own, and searches."""
    for number in itertools.count():
        name = f"experiment-{client}-{number}"
        body = json.dumps({"name": name}).encode()
        yield Request("POST", "/api/2.0/mlflow/experiments/create", "create", body, order=name)
        yield Request("GET", "/api/2.0/mlflow/experiments/search?max_results=5", "search")


def _under_load(played: _Played) -> list[str]:
    with played.process(APPS[played.colour]) as process:
        load = LoadClient(process.address, _experiments, clients=CLIENTS).start()
        eventually(lambda: load.answered >= ANSWERS, ANSWERING, START_TIMEOUT)
        process.signal()
        ended = process.wait(90)
        result = load.join(30)
    created = set(result.orders(Outcome.ANSWERED))
    with closing(Postgres(played.url)) as look:
        stored = {str(row[0]) for row in look.run("SELECT name FROM experiments")}
    odd = {status: count for status, count in result.statuses.items() if status not in (200, 503)}
    found = [
        f"exit code {ended.code}" if ended.code else "",
        f"{len(result.lost)} requests lost: {dict(result.reasons)}" if result.lost else "",
        f"answers {odd}" if odd else "",
        f"{len(created - stored)} experiments were answered and are not there" if created - stored else "",
        "" if created else "no experiment was created",
        *_closed(played),
    ]
    return [each for each in found if each]


def _planted(played: _Played) -> list[str]:
    played.environment["PYTHONPATH"] = str(Path(__file__).parent)
    with played.process("planted:app") as process:
        load = LoadClient(process.address, _experiments, clients=1).start()
        eventually(lambda: load.answered >= 2 * played.backend.workers, ANSWERING, START_TIMEOUT)
        load.stop()
        process.signal()
        ended = process.wait(90)
        load.join(30)
    held = played.report["outstanding"]
    line = next(
        number
        for number, text in enumerate((Path(__file__).parent / "planted.py").read_text("utf-8").splitlines(), 1)
        if "self.engine.connect()" in text
    )
    wanted = f"planted.py:{line} in _leaking"
    found = [
        f"exit code {ended.code}" if ended.code else "",
        "" if held and all(wanted in each["call_site"] for each in held) else f"the leak is not named: {held}",
        *_closed(played),
    ]
    return [each for each in found if each]


def _closed(played: _Played) -> Iterator[str]:
    connections = played.report["connections"]
    if connections["abandoned"] or not connections["opened"]:
        yield f"connections {connections}"
    with suppress(AssertionError):  # the server's side ends a moment after ours
        eventually(lambda: not played.sessions(), "no session is left", LOOK)
    if left := played.sessions():
        yield f"{left} sessions left"


def _install() -> None:
    """MLflow and pooldrain, in an environment of their own; MLflow is large, and stays there."""
    if not PYTHON.exists():
        _say("Installing MLflow into .venv-apps (once; it takes a minute or two)")
        venv.create(ENVIRONMENT, with_pip=True)
        _run(PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *NEEDED, f"{ROOT}[sync,async]")
    _run(PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", str(ROOT))


def _run(*command: str | Path) -> None:
    ended = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {ended.stderr[-2000:]}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
