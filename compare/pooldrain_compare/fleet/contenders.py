"""Who serves: ours, and the stock servers as people run them, with the same two applications."""

from __future__ import annotations

from dataclasses import dataclass

from pooldrain_compare.harness.processes import python_module
from pooldrain_compare.harness.servers import SERVERS

ANNOUNCE_PERIOD = 1.5  # seconds: three of HAProxy's checks

_FLASK, _FASTAPI = "pooldrain_compare.fleet.flask_app:app", "pooldrain_compare.fleet.fastapi_app:app"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to serve. `command`: after `python -m`, with {port} to be filled in."""

    name: str
    command: str
    ours: bool

    def argv(self, port: int) -> list[str]:
        """The command for this interpreter."""
        return python_module(*self.command.format(port=port).split())


def _ours() -> list[Contender]:
    found = []
    for server in SERVERS:
        app = _FLASK if server.module == "pooldrain_sync" else _FASTAPI
        options = " ".join((*server.options, "--bind 127.0.0.1:{port}", f"--announce-period {ANNOUNCE_PERIOD}"))
        found.append(Contender(server.name, f"{server.module} {app} {options} --log-format json", ours=True))
    return found


CONTENDERS = {
    contender.name: contender
    for contender in (
        *_ours(),
        Contender(
            "plain-gunicorn",
            # without its control socket, which it would put into the home directory
            "gunicorn --bind 127.0.0.1:{port} --worker-class gthread --threads 40 --no-control-socket " + _FLASK,
            ours=False,
        ),
        Contender("plain-waitress", "waitress --listen 127.0.0.1:{port} --threads 40 " + _FLASK, ours=False),
        Contender("plain-uvicorn", "uvicorn --port {port} --no-access-log " + _FASTAPI, ours=False),
    )
}
