"""A backend's command, from its first line to its last: signals, settings, the server, the exit code.

Imports little until the signals are taken over: a Ctrl+C during the start ends it in order, too.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from pooldrain.runtime.process.missing import require_posix

if TYPE_CHECKING:
    from pooldrain.runtime.process.signals import SignalWatch
    from pooldrain.servers import Backend


def run_backend(backend: Backend) -> NoReturn:
    """Run the command `pooldrain-BACKEND` and leave the process with its exit code."""
    program = f"pooldrain-{backend}"
    require_posix(program)
    from pooldrain.runtime.process.signals import SignalWatch

    watch = SignalWatch()
    watch.install()
    from pooldrain.runtime.process.exit import run_cli

    run_cli(program, lambda: _run(backend, watch))


def _run(backend: Backend, watch: SignalWatch) -> int:
    from pooldrain.runtime.options.settings import load_settings
    from pooldrain.runtime.startup import prepare
    from pooldrain.servers import SERVERS

    ground = prepare(load_settings(backend, sys.argv[1:], os.environ), watch)
    spec = SERVERS[ground.settings.server]
    module = import_module(spec.several if spec.several and ground.settings.needs_master else spec.module)
    code: int = module.serve(ground)
    return code
