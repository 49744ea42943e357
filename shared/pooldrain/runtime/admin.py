"""Starts the admin listener, if one is wanted: before the service's own address is bound, and before any thread."""

from __future__ import annotations

import atexit
import json
from contextlib import suppress
from functools import partial
from pathlib import Path

import pooldrain
from pooldrain.admin.gathering import Gathering
from pooldrain.admin.process import Admin, start
from pooldrain.runtime.listener import bind_socket, bind_text, is_path, server_address, unlink_path
from pooldrain.runtime.options.readers import OWN_HOSTS
from pooldrain.runtime.options.settings import Settings
from pooldrain.runtime.process.privileges import account, become
from pooldrain.snapshot import LastShutdown, last_shutdown

# Permissions of its Unix socket: the user's own.
_MODE = 0o600


def start_admin(settings: Settings) -> Admin:
    """Bind its address, and fork its process, which the exit of this one ends. Raises StartupError."""
    assert settings.admin is not None, "one is wanted"
    host, port = settings.admin
    listener = bind_socket(host, port, _MODE, "--admin")
    address = f"unix:{host}" if is_path(host) else f"http://{bind_text(*server_address(listener))}/"
    whom = account(settings.user, settings.group)
    admin = start(
        listener,
        Gathering(settings.service, pooldrain.__version__, _last_shutdown(settings.report)),
        names=frozenset() if settings.admin_token is not None or is_path(host) else OWN_HOSTS | {host.lower()},
        address=address,
        token=None if settings.admin_token is None else settings.admin_token.value,
        owner=None if whom is None else (whom.user, whom.group),
        become=partial(become, whom) if whom is not None else None,
    )

    def end() -> None:
        admin.end()
        if is_path(host):
            with suppress(OSError):
                unlink_path(host)

    atexit.register(end)
    return admin


def _last_shutdown(report: Path | None) -> LastShutdown | None:
    """What the service's last shutdown has left, if it can be read."""
    if report is None or not report.is_file():  # a pipe could have us wait
        return None
    try:
        return last_shutdown(json.loads(report.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError):
        return None
