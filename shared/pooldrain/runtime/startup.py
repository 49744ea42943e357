"""What both backends do before they serve: log and database, with the signals already taken over."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pooldrain.current import current_runner
from pooldrain.errors import ConfigurationError
from pooldrain.lifecycle import Lifecycle
from pooldrain.runtime.activation import address_of
from pooldrain.runtime.embedded import EmbeddedDatabase
from pooldrain.runtime.listener import Listener, bind_all, each_of, joined, keep_from_children, server_address
from pooldrain.runtime.options.application import takes_runner
from pooldrain.runtime.options.settings import Settings
from pooldrain.runtime.output.logging import configure_logging
from pooldrain.runtime.output.report import write_report
from pooldrain.runtime.process.pid_file import write_pid_file
from pooldrain.runtime.process.privileges import account, become
from pooldrain.runtime.process.service_manager import ServiceManager
from pooldrain.runtime.process.signals import SignalWatch
from pooldrain.runtime.process.watchdog import Watchdog
from pooldrain.runtime.telemetry import observe, push
from pooldrain.runtime.tls import server_context
from pooldrain.service_report import service_report
from pooldrain.shutdown import ShutdownReport
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.transcript import Listening

if TYPE_CHECKING:
    from pooldrain.admin.process import Admin

logger = logging.getLogger("pooldrain")


@dataclass(frozen=True, slots=True)
class Ground:
    """What a backend stands on."""

    settings: Settings
    url: DatabaseUrl | None  # None: the service has no pool of its own
    watch: SignalWatch
    manager: ServiceManager
    passed: tuple[socket.socket, ...] = ()  # listening sockets that outlive the service
    admin: Admin | None = None

    def bind(self) -> Listener:
        """The listening socket of the only process, bound; its children do not have it. Raises StartupError."""
        listener = joined(self.bind_each())
        keep_from_children(listener)
        return listener

    def bind_each(self) -> list[socket.socket]:
        """A bound socket for each address; then what needed the rights of this user is done. Raises StartupError."""
        settings = self.settings
        bound = list(self.passed) or bind_all(settings.binds, settings.socket_mode)
        if settings.pid is not None:
            write_pid_file(settings.pid)
        if (whom := account(settings.user, settings.group)) is not None:
            become(whom)
            settings.check_files()
            server_context(settings.certfile, settings.keyfile)
        return bound

    def follow(self, runner: Lifecycle[Any, Any]) -> None:
        """Let service manager and admin listener know of what becomes of the only process."""
        self.show(runner)
        runner.followers.append(self.manager.following(self.settings.shutdown.ladder.termination_grace_period))

    def show(self, runner: Lifecycle[Any, Any]) -> None:
        """Have the admin listener show what this process does, and the application's SDK export it."""
        observe(runner, "http" if self.settings.certfile is None else "https")
        if self.admin is not None:
            self.admin.report(runner)

    def last_words(self, report: ShutdownReport) -> None:
        """Leave to the admin listener, and to what exports, how the shutdown of this process went."""
        push(current_runner().at_last())
        if self.admin is not None:
            self.admin.last_words(report)

    def guard(self) -> Watchdog:
        """What ends the only process when it outlives its grace period."""
        watchdog = Watchdog(self.settings.shutdown.ladder.grace_period)
        self.watch.listen(watchdog.arm)
        return watchdog

    def listening(self, listener: Listener) -> tuple[Listening, ...]:
        """What to tell when the process listens, for each address; the admin listener's is told here."""
        if self.admin is not None:
            self.admin.tell()
        settings = self.settings
        return tuple(
            Listening(host, server_address(each)[1], settings.server, os.getpid())
            for (host, _), each in zip(settings.binds, each_of(listener), strict=True)
        )

    def finish(self, report: ShutdownReport) -> int:
        """Write the report of the only process where it is asked for; the exit code."""
        self.last_words(report)
        if self.settings.report is not None:
            write_report(self.settings.report, service_report([report.as_dict()], report.exit_code))
        return report.exit_code


def prepare(
    settings: Settings, watch: SignalWatch, manager: ServiceManager, passed: tuple[socket.socket, ...] = ()
) -> Ground:
    """Set up the log, start the embedded database if a pool of our own is wanted and no other is named.

    An application that makes its engines itself needs neither. The embedded database is stopped by the process's exit,
    which `watch` keeps in order. Raises ConfigurationError or StartupError.
    """
    configure_logging(settings.log_format, settings.log_level, settings.log_config)
    server_context(settings.certfile, settings.keyfile)  # each process makes its own; this one tells what is wrong
    if passed:
        if idle := [origin for dest, origin in settings.given if dest == "bind"]:
            logger.warning("no effect: %s; the service manager has passed the sockets to listen on", idle[0])
        settings = replace(settings, binds=tuple(map(address_of, passed)))
    if settings.umask is not None:
        os.umask(settings.umask)
    admin = None
    if settings.admin is not None:
        from pooldrain.runtime.admin import start_admin  # an HTTP server, which few starts need

        admin = start_admin(settings)  # before there are threads
    url = settings.database_url
    if url is None and _wants_pool(settings):
        if account(settings.user, settings.group) is not None:
            raise ConfigurationError(
                "--user and --group are for a database of your own, not for the embedded one; give --database-url"
            )
        url = DatabaseUrl.parse(EmbeddedDatabase().start())
    return Ground(settings, url, watch, manager, passed, admin)


def _wants_pool(settings: Settings) -> bool:
    """Whether the service has a pool of its own: the demo has, and a factory that takes the runner."""
    return settings.app is None or takes_runner(settings.app, settings.factory, settings.app_dir)
