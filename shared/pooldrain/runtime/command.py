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
    from pooldrain.runtime.options.settings import Settings
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
    from pooldrain.runtime.process.memory import limit_arenas, loading

    with loading():
        from pooldrain.runtime.options.settings import load_settings
    arguments = sys.argv[1:]
    settings = load_settings(backend, arguments, os.environ)
    if settings.print_config:
        sys.stdout.write(settings.describe())
        return 0
    if settings.check_config:
        return _check(settings)
    if settings.reload:
        from pooldrain.runtime.reload import serve_and_reload

        return serve_and_reload(backend, arguments, settings, watch)
    with loading():
        from pooldrain.runtime.activation import passed_sockets
        from pooldrain.runtime.process.init import is_wanted, split
        from pooldrain.runtime.process.service_manager import service_manager
        from pooldrain.runtime.process.signals import SignalWatch
        from pooldrain.runtime.process.versions import require_version
        from pooldrain.runtime.startup import prepare
        from pooldrain.servers import SERVERS
    spec = SERVERS[settings.server]
    for package in {spec.name, *(["gunicorn"] if settings.needs_master else [])}:
        require_version(package)
    limit_arenas()
    manager, passed = service_manager(os.environ), passed_sockets(os.environ)
    if is_wanted(settings.init):
        if (ended := split(watch)) is not None:
            return ended
        watch = SignalWatch()
        watch.install()
    ground = prepare(settings, watch, manager, passed)
    with loading():
        module = import_module(spec.several if spec.several and ground.settings.needs_master else spec.module)
    code: int = module.serve(ground)
    return code


def _check(settings: Settings) -> int:
    """The options are right; whether the application can be imported."""
    if settings.app is not None:
        from pooldrain.runtime.options.application import load_application

        load_application(settings.app, settings.backend, factory=settings.factory, directory=settings.app_dir)
    sys.stdout.write(f"{settings.service}: the configuration is in order\n")
    return 0
