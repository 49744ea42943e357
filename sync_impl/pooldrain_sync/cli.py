"""The `pooldrain-sync` command.

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


def main() -> NoReturn:
    """Run the command and leave the process with its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # dies silently until the next lines have run
    from pooldrain.runtime.process.missing import require_posix

    require_posix("pooldrain-sync")
    from pooldrain.runtime.process.signals import SignalWatch

    watch = SignalWatch()
    watch.install()
    from pooldrain.runtime.process.exit import run_cli

    run_cli("pooldrain-sync", lambda: _run(watch))


def _run(watch: SignalWatch) -> int:
    from pooldrain.runtime.options.settings import load_settings
    from pooldrain.runtime.startup import prepare

    ground = prepare(load_settings("sync", sys.argv[1:], os.environ), watch)
    return _gunicorn(ground) if ground.settings.server == "gunicorn" else _waitress(ground)


def _waitress(ground: Ground) -> int:
    from pooldrain.runtime.listener import bind_socket, keep_from_children
    from pooldrain.runtime.output.report import write_report
    from pooldrain.runtime.process.watchdog import Watchdog
    from pooldrain.transcript import Listening
    from pooldrain_sync.assembly import build
    from pooldrain_sync.servers.waitress import WaitressServer

    settings = ground.settings
    listener = bind_socket(settings.host, settings.port)
    keep_from_children(listener)
    service = build(settings, ground.url)
    watchdog = Watchdog(settings.shutdown.ladder.grace_period)
    ground.watch.listen(watchdog.arm)
    service.runner.open()
    server = WaitressServer(service.app, service.runner, listener, settings.threads, watchdog)
    port = listener.getsockname()[1]
    report = server.serve(ground.watch, Listening(settings.host, port, settings.server, os.getpid()))
    if settings.report is not None:
        write_report(settings.report, report.as_dict())
    return report.exit_code


def _gunicorn(ground: Ground) -> int:
    from pooldrain.runtime.master.master import run_master
    from pooldrain_sync.servers.gunicorn.worker import DrainWorker

    return run_master(ground, DrainWorker, lambda: _build(ground))


def _build(ground: Ground) -> object:
    from pooldrain_sync.assembly import build

    return build(ground.settings, ground.url)
