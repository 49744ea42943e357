"""What does the gate cost a request? The same app on the same stock server, with the gate around it and without.

Twice: as requests per second of running servers, and as microseconds within one process, where no network
and no scheduler blurs the difference.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

from pooldrain_compare.client import LoadClient, Mode, Outcome, constant
from pooldrain_compare.processes import ServerProcess, free_port

CLIENTS = 16
PER_SECOND = "requests/s"
CALLS = {"waitress": "Flask call", "uvicorn": "FastAPI call"}  # what of a server's request is measured alone
_PLAIN = "pooldrain_compare.baselines"
_GATED = "pooldrain_compare.bench.gate_apps"
# Both sides are started by the same command, with a factory or without.
_COMMANDS = {
    "waitress": (
        ("waitress", "--listen", "{address}", "--threads", "8", f"{_PLAIN}.flask_app:app"),
        ("waitress", "--listen", "{address}", "--threads", "8", "--call", f"{_GATED}:gated_flask"),
    ),
    "uvicorn": (
        ("uvicorn", "--port", "{port}", "--no-access-log", f"{_PLAIN}.fastapi_app:app"),
        ("uvicorn", "--port", "{port}", "--no-access-log", "--factory", f"{_GATED}:gated_fastapi"),
    ),
}


@dataclass(frozen=True, slots=True)
class GateSample:
    """One pair: requests per second, or microseconds per request when `unit` says so."""

    what: str
    unit: str
    bare: float
    gated: float

    @property
    def bare_us(self) -> float:
        """Microseconds that a request takes without the gate."""
        return 1e6 / self.bare if self.unit == PER_SECOND else self.bare

    @property
    def added_us(self) -> float:
        """Microseconds that it takes longer with it."""
        return (1e6 / self.gated if self.unit == PER_SECOND else self.gated) - self.bare_us


def measure_servers(
    directory: Path, rounds: int, seconds: float, progress: Callable[[str, float], None]
) -> list[GateSample]:
    """Pairs of slices of load, in alternating order, on two running servers of the same kind."""
    samples = []
    for index, (server, commands) in enumerate(_COMMANDS.items()):
        with ExitStack() as stack:
            processes = [
                stack.enter_context(_process(command, directory / f"gate-{server}-{side}.log"))
                for side, command in enumerate(commands)
            ]
            for process in processes:
                _rate(process, seconds)  # warm
            for number in range(rounds):
                progress(f"gate: {server} under load", 0.5 + (index + number / rounds) / 4)
                order = (0, 1) if number % 2 == 0 else (1, 0)
                rates = {side: _rate(processes[side], seconds) for side in order}
                samples.append(GateSample(server, PER_SECOND, rates[0], rates[1]))
    return samples


def _process(command: tuple[str, ...], log: Path) -> ServerProcess:
    port = free_port()
    parts = [part.format(address=f"127.0.0.1:{port}", port=port) for part in command]
    return ServerProcess(
        [sys.executable, "-m", *parts],
        log=log,
        address=("127.0.0.1", port),
        environment={"DATABASE_URL": "postgresql+psycopg://never-opened/x"},
    )


def _rate(process: ServerProcess, seconds: float) -> float:
    load = LoadClient(process.address, constant("/"), clients=CLIENTS, modes=(Mode.KEEP_ALIVE,)).start()
    started = time.monotonic()
    time.sleep(seconds)
    load.stop()
    result = load.join(10.0)
    return result.count(Outcome.ANSWERED) / (time.monotonic() - started)


def measure_calls(rounds: int, loops: int, progress: Callable[[str, float], None]) -> list[GateSample]:
    """Pairs of calls of the app itself, as a server makes them."""
    from pooldrain_compare.bench.gate_apps import gate_asgi, gate_wsgi

    os.environ.setdefault("DATABASE_URL", "postgresql+psycopg://never-opened/x")
    from pooldrain_compare.baselines import fastapi_app, flask_app

    wsgi = (flask_app.app, gate_wsgi(flask_app.app))
    asgi = (fastapi_app.app, gate_asgi(fastapi_app.app))
    samples = []
    for number in range(rounds):
        progress("gate: calls", 0.95)
        order = (0, 1) if number % 2 == 0 else (1, 0)
        times = {side: _time(partial(_call_wsgi, wsgi[side], loops), loops) for side in order}
        samples.append(GateSample(CALLS["waitress"], "µs", times[0], times[1]))
        times = {side: _time(partial(_run_asgi, asgi[side], loops), loops) for side in order}
        samples.append(GateSample(CALLS["uvicorn"], "µs", times[0], times[1]))
    return samples


def _time(work: Callable[[], Any], loops: int) -> float:
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) / loops * 1e6
    finally:
        gc.enable()


def _call_wsgi(app: Any, loops: int) -> None:
    pattern: dict[str, Any] = {}
    setup_testing_defaults(pattern)
    pattern["wsgi.input"] = BytesIO()

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        assert status.startswith("200")

    for _ in range(loops):
        body = app(pattern.copy(), start_response)
        for _piece in body:
            pass
        if hasattr(body, "close"):
            body.close()


def _run_asgi(app: Any, loops: int) -> None:
    asyncio.run(_call_asgi(app, loops))


async def _call_asgi(app: Any, loops: int) -> None:
    pattern = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200

    for _ in range(loops):
        await app(dict(pattern), receive, send)
