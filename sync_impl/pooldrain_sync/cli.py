"""The `pooldrain-sync` command."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from pooldrain.runtime.exit import run_cli
from pooldrain.runtime.listener import bind_socket
from pooldrain.runtime.report import write_report
from pooldrain.runtime.settings import load_settings
from pooldrain.runtime.startup import Ground, prepare
from pooldrain.transcript import Listening
from pooldrain_sync.service import build


def main() -> NoReturn:
    """Run the command and leave the process with its exit code."""
    run_cli("pooldrain-sync", _run)


def _run() -> int:
    ground = prepare(load_settings("sync", sys.argv[1:], os.environ))
    return _gunicorn(ground) if ground.settings.server == "gunicorn" else _waitress(ground)


def _waitress(ground: Ground) -> int:
    from pooldrain_sync.servers.waitress import WaitressServer

    settings = ground.settings
    listener = bind_socket(settings.host, settings.port)
    service = build(settings, ground.url)
    service.open()
    server = WaitressServer(service.app, service.runner, listener, settings.threads)
    port = listener.getsockname()[1]
    report = server.serve(ground.watch, Listening(settings.host, port, settings.server, os.getpid()))
    if settings.report is not None:
        write_report(settings.report, report.as_dict())
    return report.exit_code


def _gunicorn(ground: Ground) -> int:
    from pooldrain.runtime.master import run_master
    from pooldrain_sync.servers.gunicorn import DrainWorker

    return run_master(ground, DrainWorker)
