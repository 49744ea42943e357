"""What both backends do before they serve: signals, log, database."""

from __future__ import annotations

from dataclasses import dataclass

from pooldrain.runtime.database_url import DatabaseUrl
from pooldrain.runtime.embedded import EmbeddedDatabase
from pooldrain.runtime.logging import configure_logging
from pooldrain.runtime.settings import Settings
from pooldrain.runtime.signals import SignalWatch


@dataclass(frozen=True, slots=True)
class Ground:
    """What a backend stands on."""

    settings: Settings
    url: DatabaseUrl
    watch: SignalWatch


def prepare(settings: Settings) -> Ground:
    """Take over the signals, set up the log, start the embedded database if no other is named.

    The embedded database is stopped by the process's exit. Raises ConfigurationError or StartupError.
    """
    watch = SignalWatch()
    watch.install()  # before the database: a signal that killed us now would leave it running
    configure_logging(settings.log_format, settings.log_level)
    url = settings.database_url or DatabaseUrl.parse(EmbeddedDatabase().start())
    return Ground(settings, url, watch)
