"""The servers under comparison, the ways to run them, and how each is started."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pooldrain import servers as specs
from pooldrain.servers import ServerSpec, servers_of
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
        self,
        url: str,
        directory: Path,
        *options: str,
        observed: bool = True,
        awaited: bool = True,
        variable: str = "POOLDRAIN_DATABASE_URL",
    ) -> ServerProcess:
        """A process that is not started yet; `observed` ones write a report and a transcript into `directory`.

        `awaited`: starting it means waiting until it accepts. `variable`: what of its environment has the URL.
        """
        report, transcript = self.report(directory), self.transcript(directory)
        for left in (report, transcript):  # of an earlier run: a transcript is appended to
            left.unlink(missing_ok=True)
        bind = () if "--bind" in options else ("--bind", "127.0.0.1:0")
        files = ("--report", str(report), "--transcript", str(transcript))
        unseen = () if "--admin" in options else ("--admin", "off")  # another process, which few want to look at
        return ServerProcess(
            python_module(
                self.module,
                *self.options,
                *bind,
                *("--log-format", "json"),
                *unseen,
                *(files if observed else ()),
                *options,
            ),
            log=directory / f"{self.name}.log",
            environment={variable: url},  # not an option: a command line shows passwords to everybody
            awaited=awaited,
        )


def _backend(spec: ServerSpec) -> Backend:
    chosen = ("--server", spec.name) if len(servers_of(spec.backend)) > 1 else ()
    return Backend(spec.name, f"pooldrain_{spec.backend}", f"pooldrain-{spec.backend}", chosen)


def _with_two_workers(backend: Backend) -> Backend:
    options = (*backend.options, "--workers", "2")
    return replace(backend, name=f"{backend.name}-2-workers", options=options, workers=2)


SERVERS = tuple(map(_backend, specs.SERVERS.values()))
EVERY_WAY = (*SERVERS, *(_with_two_workers(each) for each in SERVERS if specs.SERVERS[each.name].several))
BACKENDS = {backend.name: backend for backend in EVERY_WAY}

GUNICORN, WAITRESS, UVICORN = (BACKENDS[name] for name in ("gunicorn", "waitress", "uvicorn"))
GUNICORN_2, UVICORN_2 = (BACKENDS[f"{name}-2-workers"] for name in ("gunicorn", "uvicorn"))

# Every threaded server is compared with the asyncio one that has as many workers.
COMPARED_WITH = {
    ours.name: theirs.name
    for ours in EVERY_WAY
    for theirs in (UVICORN, UVICORN_2)
    if ours.module == GUNICORN.module and ours.workers == theirs.workers
}
