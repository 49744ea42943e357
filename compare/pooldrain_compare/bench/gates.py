"""What does the gate cost a request? The same app on the same stock server, with the gate around it and without.

Thrice: around an app that does nothing and around the framework's, as processor time within one process, where no
network and no scheduler blurs the difference; and as a whole request to a running server, without a query and with one.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain_compare.baselines import fastapi_app, flask_app
from pooldrain_compare.bench import apps
from pooldrain_compare.bench.recorder import Bench, Point, rounds
from pooldrain_compare.bench.timing import time_awaits, time_calls
from pooldrain_compare.harness.load import LoadClient, Mode, Outcome, constant
from pooldrain_compare.harness.processes import ServerProcess, free_port

EMPTY = "a request through the gate, empty app"
CALL = "a request through the gate, the app called alone"
SERVED = "a request through the gate, served"
QUERIED = "a request with a query through the gate, served"
_TARGETS = {SERVED: "/", QUERIED: "/db-test"}
CLIENTS = 16
_METRIC = "time per request"

# Both sides are started by the same command, with one factory or the other.
_WAITRESS = "waitress --listen 127.0.0.1:{port} --threads 8 --call pooldrain_compare.bench.apps:"
_UVICORN = "uvicorn --port {port} --no-access-log --factory pooldrain_compare.bench.apps:"
_COMMANDS = {
    "plain-waitress": f"{_WAITRESS}bare_flask",
    "pooldrain-waitress": f"{_WAITRESS}gated_flask",
    "plain-uvicorn": f"{_UVICORN}bare_fastapi",
    "pooldrain-uvicorn": f"{_UVICORN}gated_fastapi",
}


def measure_calls(bench: Bench, runs: int, loops: int, progress: Callable[[float], None]) -> None:
    """Apps called as a server calls them."""
    calls: dict[tuple[str, str], Callable[[int], float]] = {}
    url = DatabaseUrl.parse(bench.url)
    flask = flask_app.make_app(flask_app.make_engine(url.sync_url.render_as_string(hide_password=False)))
    fastapi = fastapi_app.make_app(fastapi_app.make_engine(url.async_url.render_as_string(hide_password=False)))
    for case, wsgi, asgi in ((EMPTY, _empty_wsgi, _empty_asgi), (CALL, flask, fastapi)):
        calls[case, "plain-waitress"] = partial(_time_wsgi, wsgi)
        calls[case, "pooldrain-waitress"] = partial(_time_wsgi, apps.gate_wsgi(wsgi))
        calls[case, "plain-uvicorn"] = partial(_time_asgi, asgi)
        calls[case, "pooldrain-uvicorn"] = partial(_time_asgi, apps.gate_asgi(asgi))
    steps = list(calls)
    for number, (_, step) in enumerate(rounds(steps, runs)):
        progress(number / runs / len(steps))
        case, name = step
        bench.recorder.add(Point(case, name, _METRIC, "us"), calls[step](loops))


def measure_servers(bench: Bench, runs: int, seconds: float, progress: Callable[[float], None]) -> None:
    """Slices of load on running servers: how long a server that is never idle needs for a request."""
    url = DatabaseUrl.parse(bench.url).sync_url.render_as_string(hide_password=False)
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(_process(command, url, bench.directory / f"gate-{name}.log"))
            for name, command in _COMMANDS.items()
        }
        steps = list(itertools.product(_TARGETS, servers))
        for case, name in steps:
            _time_served(servers[name], _TARGETS[case], seconds)  # warm
        for number, (_, (case, name)) in enumerate(rounds(steps, runs)):
            progress(number / runs / len(steps))
            point = Point(case, name, _METRIC, "us")
            bench.recorder.add(point, _time_served(servers[name], _TARGETS[case], seconds))
            bench.recorder.note(point, "the stock server, with the gate alone or without")


def _process(command: str, url: str, log: Path) -> ServerProcess:
    port = free_port()
    return ServerProcess(
        [sys.executable, "-m", *command.format(port=port).split()],
        log=log,
        address=("127.0.0.1", port),
        environment={"DATABASE_URL": url},
    )


def _time_served(process: ServerProcess, target: str, seconds: float) -> float:
    load = LoadClient(process.address, constant(target), clients=CLIENTS, modes=(Mode.KEEP_ALIVE,)).start()
    started = time.monotonic()
    time.sleep(seconds)
    load.stop()
    result = load.join(10.0)
    return (time.monotonic() - started) / result.count(Outcome.ANSWERED) * 1e6


def _time_wsgi(app: Any, loops: int) -> float:
    pattern: dict[str, Any] = {}
    setup_testing_defaults(pattern)
    pattern["wsgi.input"] = BytesIO()

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        assert status == "200 OK"

    def work(loops: int) -> None:
        for _ in range(loops):
            body = app(pattern.copy(), start_response)
            for _piece in body:
                pass
            if hasattr(body, "close"):
                body.close()

    return time_calls(work, loops)


def _empty_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]


def _time_asgi(app: Any, loops: int) -> float:
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

    async def work(loops: int) -> None:
        for _ in range(loops):
            await app(dict(pattern), receive, send)

    return asyncio.run(time_awaits(work, loops))


async def _empty_asgi(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
