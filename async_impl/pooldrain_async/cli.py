"""The `pooldrain-async` command."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import NoReturn

from pooldrain.runtime.exit import run_cli
from pooldrain.runtime.listener import bind_socket
from pooldrain.runtime.report import write_report
from pooldrain.runtime.settings import load_settings
from pooldrain.runtime.startup import Ground, prepare
from pooldrain.shutdown import ShutdownReport
from pooldrain.transcript import Listening
from pooldrain_async.servers.uvicorn import UvicornServer
from pooldrain_async.service import build


def main() -> NoReturn:
    """Run the command and leave the process with its exit code."""
    run_cli("pooldrain-async", _run)


def _run() -> int:
    ground = prepare(load_settings("async", sys.argv[1:], os.environ))
    return _gunicorn(ground) if ground.settings.workers > 1 else _uvicorn(ground)


def _uvicorn(ground: Ground) -> int:
    # Not asyncio.run: it would wait for tasks that swallow their cancellation.
    report = asyncio.new_event_loop().run_until_complete(_serve(ground))
    if ground.settings.report is not None:
        write_report(ground.settings.report, report.as_dict())
    return report.exit_code


async def _serve(ground: Ground) -> ShutdownReport:
    settings = ground.settings
    listener = bind_socket(settings.host, settings.port)
    service = build(settings, ground.url)
    await service.open()
    server = UvicornServer(service.app, service.runner, listener)
    port = listener.getsockname()[1]
    return await server.run_to_end(ground.watch, Listening(settings.host, port, settings.server, os.getpid()))


def _gunicorn(ground: Ground) -> int:
    from pooldrain.runtime.master import run_master
    from pooldrain_async.servers.gunicorn import DrainWorker

    return run_master(ground, DrainWorker)
