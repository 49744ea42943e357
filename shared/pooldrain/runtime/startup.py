"""What both backends do before they serve: log and database, with the signals already taken over."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pooldrain.runtime.embedded import EmbeddedDatabase
from pooldrain.runtime.listener import Listener, bind_all, each_of, joined, keep_from_children, server_address
from pooldrain.runtime.options.application import takes_runner
from pooldrain.runtime.options.settings import Settings
from pooldrain.runtime.output.logging import configure_logging
from pooldrain.runtime.output.report import write_report
from pooldrain.runtime.process.signals import SignalWatch
from pooldrain.runtime.process.watchdog import Watchdog
from pooldrain.runtime.tls import server_context
from pooldrain.service_report import service_report
from pooldrain.shutdown import ShutdownReport
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.transcript import Listening


@dataclass(frozen=True, slots=True)
class Ground:
    """What a backend stands on."""

    settings: Settings
    url: DatabaseUrl | None  # None: the service has no pool of its own
    watch: SignalWatch

    def bind(self) -> Listener:
        """The listening socket of the only process, bound; its children do not have it. Raises StartupError."""
        listener = joined(bind_all(self.settings.binds, self.settings.socket_mode))
        keep_from_children(listener)
        return listener

    def guard(self) -> Watchdog:
        """What ends the only process when it outlives its grace period."""
        watchdog = Watchdog(self.settings.shutdown.ladder.grace_period)
        self.watch.listen(watchdog.arm)
        return watchdog

    def listening(self, listener: Listener) -> tuple[Listening, ...]:
        """What to tell when the process listens, for each address."""
        settings = self.settings
        return tuple(
            Listening(host, server_address(each)[1], settings.server, os.getpid())
            for (host, _), each in zip(settings.binds, each_of(listener), strict=True)
        )

    def finish(self, report: ShutdownReport) -> int:
        """Write the report of the only process where it is asked for; the exit code."""
        if self.settings.report is not None:
            write_report(self.settings.report, service_report([report.as_dict()], report.exit_code))
        return report.exit_code


def prepare(settings: Settings, watch: SignalWatch) -> Ground:
    """Set up the log, start the embedded database if a pool of our own is wanted and no other is named.

    An application that makes its engines itself needs neither. The embedded database is stopped by the process's exit,
    which `watch` keeps in order. Raises ConfigurationError or StartupError.
    """
    configure_logging(settings.log_format, settings.log_level)
    server_context(settings.certfile, settings.keyfile)  # each process makes its own; this one tells what is wrong
    url = settings.database_url
    if url is None and _wants_pool(settings):
        url = DatabaseUrl.parse(EmbeddedDatabase().start())
    return Ground(settings, url, watch)


def _wants_pool(settings: Settings) -> bool:
    """Whether the service has a pool of its own: the demo has, and a factory that takes the runner."""
    return settings.app is None or takes_runner(settings.app, settings.factory, settings.app_dir)
