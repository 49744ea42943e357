"""The demo app as people run it today: short, recognisable recipes on stock servers, without any of pooldrain.

Each follows its server's own documentation: one worker, 40 threads where it has threads, room for every client, and
everything else as it comes.
The database is named by DATABASE_URL; connections carry the application name `baseline`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
THREADS = 40
APPLICATION_NAME = "baseline"


@dataclass(frozen=True, slots=True)
class Baseline:
    """One recipe.

    `command` is what a user types after `python -m`, with {port} and {threads} to be filled in. `bounded` is what
    limits the wait for a request that hangs to {seconds}: options, and NAME=value for the environment; empty where
    the server offers nothing of the kind.
    """

    name: str
    label: str
    colour: Literal["sync", "async"]
    command: str
    bounded: str
    disposes: str  # where the engine is disposed of

    @property
    def recipe(self) -> str:
        """How it is run, in one line."""
        typed = self.command.format(port=8000, threads=THREADS)
        return f"{typed.replace(f'{_APPS}.', '').replace(f'{HERE}/', '')}; engine.dispose() {self.disposes}"

    def argv(self, port: int, *, threads: int = THREADS, bound: int | None = None) -> list[str]:
        """The command for this interpreter, on a port of the loopback interface; `bound` in seconds."""
        module, *typed = self.command.format(port=port, threads=threads).split()
        options = [word for word in self._bounding(bound) if "=" not in word]
        return [sys.executable, "-m", module, *options, *typed]

    def environment(self, url: str, *, bound: int | None = None) -> dict[str, str]:
        """What the process finds in its environment; `url` as SQLAlchemy takes it."""
        variables = [word.partition("=") for word in self._bounding(bound) if "=" in word]
        return {"DATABASE_URL": url} | {name: value for name, _, value in variables}

    def _bounding(self, bound: int | None) -> list[str]:
        return [] if bound is None else self.bounded.format(seconds=bound).split()


_APPS = "pooldrain_compare.baselines"
_LIFESPAN = "at the end of the lifespan"

BASELINES = {
    baseline.name: baseline
    for baseline in (
        Baseline(
            "plain-gunicorn",
            "plain gunicorn",
            "sync",
            # without its control socket, which it would put into the home directory
            "gunicorn --bind 127.0.0.1:{port} --worker-class gthread --threads {threads} --no-control-socket "
            f"--config {HERE}/gunicorn_conf.py {_APPS}.flask_gunicorn:app",
            "--graceful-timeout {seconds}",
            "in worker_exit",
        ),
        Baseline(
            "plain-waitress",
            "plain waitress",
            "sync",
            # by default it serves 100 connections, and whoever comes later waits for one of them to close
            "waitress --listen 127.0.0.1:{port} --threads {threads} --connection-limit 1000 "
            f"{_APPS}.flask_atexit:app",
            "",
            "with atexit",
        ),
        Baseline(
            "granian-wsgi",
            "granian WSGI",
            "sync",
            f"granian --interface wsgi --port {{port}} --blocking-threads {{threads}} {_APPS}.flask_atexit:app",
            "--workers-kill-timeout {seconds}",
            "with atexit, which its workers do not run",
        ),
        Baseline(
            "cheroot",
            "cheroot",
            "sync",
            f"cheroot --bind 127.0.0.1:{{port}} --threads {{threads}} {_APPS}.flask_atexit:app",
            "",
            "with atexit, which SIGTERM does not reach",
        ),
        Baseline(
            "plain-uvicorn",
            "plain uvicorn",
            "async",
            f"uvicorn --port {{port}} --no-access-log {_APPS}.fastapi_lifespan:app",
            "--timeout-graceful-shutdown {seconds}",
            _LIFESPAN,
        ),
        Baseline(
            "gunicorn-uvicorn-worker",
            "gunicorn + uvicorn-worker",
            "async",
            "gunicorn --bind 127.0.0.1:{port} --worker-class uvicorn_worker.UvicornWorker --no-control-socket "
            f"{_APPS}.fastapi_lifespan:app",
            "--graceful-timeout {seconds}",
            _LIFESPAN,
        ),
        Baseline(
            "granian-asgi",
            "granian ASGI",
            "async",
            f"granian --interface asgi --port {{port}} {_APPS}.fastapi_lifespan:app",
            "--workers-kill-timeout {seconds}",
            _LIFESPAN,
        ),
        Baseline(
            "hypercorn",
            "hypercorn",
            "async",
            f"hypercorn --bind 127.0.0.1:{{port}} {_APPS}.fastapi_lifespan:app",
            "--graceful-timeout {seconds}",
            _LIFESPAN,
        ),
        Baseline(
            "poll-flag",
            "flag and poll on uvicorn",
            "async",
            f"uvicorn --port {{port}} --no-access-log {_APPS}.fastapi_poll_flag:app",
            "DRAIN_TIMEOUT={seconds} --timeout-graceful-shutdown {seconds}",
            "once a poll every 100 ms has found no request",
        ),
    )
}
