"""The servers that there are: what each can, and where it is. A new server is a line here, and the module it names.

The module has `serve(ground) -> int`: serve until a signal has led to the end, and return the exit code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Backend = Literal["sync", "async"]


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One server, by what the options and the commands have to know of it."""

    name: str  # as `--server` names it
    backend: Backend
    module: str  # serves from one process
    several: str | None  # serves from several, which a master starts and replaces; None: it cannot
    speaks_tls: bool = True


SERVERS = {
    spec.name: spec
    for spec in (
        ServerSpec("gunicorn", "sync", "pooldrain_sync.servers.gunicorn", "pooldrain_sync.servers.gunicorn"),
        ServerSpec("waitress", "sync", "pooldrain_sync.servers.waitress", None, speaks_tls=False),
        ServerSpec("uvicorn", "async", "pooldrain_async.servers.uvicorn", "pooldrain_async.servers.gunicorn"),
    )
}


def servers_of(backend: Backend) -> tuple[ServerSpec, ...]:
    """The servers of a backend; the first is its default."""
    return tuple(spec for spec in SERVERS.values() if spec.backend == backend)
