"""The demo app as people run it today: short, recognisable recipes on stock servers, without any of pooldrain.

Each follows its server's own documentation. The database is named by DATABASE_URL; connections carry the
application name `baseline`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
THREADS = 40
APPLICATION_NAME = "baseline"


@dataclass(frozen=True, slots=True)
class Baseline:
    """One recipe. `command` is what a user types, with {address} and {port} to be filled in."""

    name: str
    command: tuple[str, ...]

    def argv(self, port: int) -> list[str]:
        """The command for this interpreter, bound to a port of the loopback interface."""
        parts = [part.format(address=f"127.0.0.1:{port}", port=port, here=HERE) for part in self.command]
        return [sys.executable, "-m", *parts]


_APPS = "pooldrain_compare.baselines"

GUNICORN = Baseline(
    "gunicorn",
    (
        *("gunicorn", "--bind", "{address}", "--worker-class", "gthread", "--threads", str(THREADS)),
        "--no-control-socket",  # it would be put into the home directory
        *("--config", "{here}/gunicorn_conf.py", f"{_APPS}.flask_app:app"),
    ),
)
WAITRESS = Baseline(
    "waitress",
    ("waitress", "--listen", "{address}", "--threads", str(THREADS), f"{_APPS}.flask_app:app"),
)
UVICORN = Baseline(
    "uvicorn",
    (
        *("uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log"),
        f"{_APPS}.fastapi_app:app",
    ),
)

BASELINES = {baseline.name: baseline for baseline in (GUNICORN, WAITRESS, UVICORN)}
