"""The `pooldrain-async` command.

Imports little until the signals are taken over: a Ctrl+C during the start ends it in order, too.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pooldrain.runtime.process.signals import SignalWatch
    from pooldrain.runtime.startup import Ground
    from pooldrain_async.servers.uvicorn import UvicornServer


def main() -> NoReturn:
    """Run the command and leave the process with its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # dies silently until the next lines have run
    from pooldrain.runtime.process.missing import require_posix

    require_posix("pooldrain-async")
    from pooldrain.runtime.process.signals import SignalWatch

    watch = SignalWatch()
    watch.install()
    from pooldrain.runtime.process.exit import run_cli

    run_cli("pooldrain-async", lambda: _run(watch))


def _run(watch: SignalWatch) -> int:
    from pooldrain.runtime.options.settings import load_settings
    from pooldrain.runtime.startup import prepare

    ground = prepare(load_settings("async", sys.argv[1:], os.environ), watch)
    return _gunicorn(ground) if ground.settings.needs_master else _uvicorn(ground)


def _uvicorn(ground: Ground) -> int:
    import asyncio

    from pooldrain.runtime.output.report import write_report
    from pooldrain_async.servers.uvicorn import serve_to_end

    # Not asyncio.run: it would wait for tasks that swallow their cancellation.
    loop = asyncio.new_event_loop()
    report = serve_to_end(loop, loop.run_until_complete(_open(ground)))
    if ground.settings.report is not None:
        write_report(ground.settings.report, report.as_dict())
    return report.exit_code


async def _open(ground: Ground) -> UvicornServer:
    from pooldrain.runtime.listener import bind_socket, keep_from_children
    from pooldrain.runtime.process.watchdog import Watchdog
    from pooldrain.transcript import Listening
    from pooldrain_async.assembly import build
    from pooldrain_async.servers.uvicorn import UvicornServer

    settings = ground.settings
    listener = bind_socket(settings.host, settings.port)
    keep_from_children(listener)
    service = build(settings, ground.url)
    watchdog = Watchdog(settings.shutdown.ladder.grace_period)
    ground.watch.listen(watchdog.arm)
    await service.runner.open()
    listening = Listening(settings.host, listener.getsockname()[1], settings.server, os.getpid())
    return UvicornServer(service.app, service.runner, listener, listening, ground.watch, watchdog=watchdog)


def _gunicorn(ground: Ground) -> int:
    from pooldrain.runtime.master.master import run_master
    from pooldrain_async.assembly import build
    from pooldrain_async.servers.gunicorn import DrainWorker

    return run_master(ground, DrainWorker, lambda: build(ground.settings, ground.url))
