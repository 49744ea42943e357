"""The servers under comparison, the ways to run them, and how each is started."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pooldrain_compare.harness.processes import (
    ServerProcess,
    python_module,
)


@dataclass(frozen=True, slots=True)
class Backend:
    """One of ours: a server, the module that runs it, and the name of its service."""

    name: str
    module: str
    service: str
    options: tuple[str, ...] = ()
    workers: int = 1  # how many processes serve

    @property
    def sessions(self) -> str:
        """What the application names of its database sessions begin with."""
        return f"pooldrain:{self.service}:"

    def report(self, directory: Path) -> Path:
        """Where its shutdown report is written."""
        return directory / f"{self.name}.report.json"

    def transcript(self, directory: Path) -> Path:
        """Where its transcript is written."""
        return directory / f"{self.name}.transcript.jsonl"

    def process(
        self, url: str, directory: Path, *options: str, observed: bool = True, awaited: bool = True
    ) -> ServerProcess:
        """A process that is not started yet; `observed` ones write a report and a transcript into `directory`.

        `awaited`: starting it means waiting until it accepts.
        """
        report, transcript = self.report(directory), self.transcript(directory)
        for left in (report, transcript):  # of an earlier run: a transcript is appended to
            left.unlink(missing_ok=True)
        files = ("--report", str(report), "--transcript", str(transcript))
        return ServerProcess(
            python_module(
                self.module,
                *self.options,
                *("--bind", "127.0.0.1:0", "--log-format", "json"),
                *(files if observed else ()),
                *options,
            ),
            log=directory / f"{self.name}.log",
            environment={"POOLDRAIN_DATABASE_URL": url},  # not an option: a command line shows passwords to everybody
            awaited=awaited,
        )


GUNICORN = Backend("gunicorn", "pooldrain_sync", "pooldrain-sync", ("--server", "gunicorn"))
WAITRESS = Backend("waitress", "pooldrain_sync", "pooldrain-sync", ("--server", "waitress"))
UVICORN = Backend("uvicorn", "pooldrain_async", "pooldrain-async")

_TWO = ("--workers", "2")
GUNICORN_2 = replace(GUNICORN, name="gunicorn-2-workers", options=(*GUNICORN.options, *_TWO), workers=2)
UVICORN_2 = replace(UVICORN, name="uvicorn-2-workers", options=_TWO, workers=2)

SERVERS = (GUNICORN, WAITRESS, UVICORN)
EVERY_WAY = (*SERVERS, GUNICORN_2, UVICORN_2)
BACKENDS = {backend.name: backend for backend in EVERY_WAY}

# Every threaded server is compared with the asyncio one that has as many workers.
COMPARED_WITH = {GUNICORN.name: UVICORN.name, WAITRESS.name: UVICORN.name, GUNICORN_2.name: UVICORN_2.name}
