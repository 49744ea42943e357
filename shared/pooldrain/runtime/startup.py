"""What both backends do before they serve: log and database, with the signals already taken over."""

from __future__ import annotations

from dataclasses import dataclass

from pooldrain.runtime.embedded import EmbeddedDatabase
from pooldrain.runtime.options.settings import Settings
from pooldrain.runtime.output.logging import configure_logging
from pooldrain.runtime.process.signals import SignalWatch
from pooldrain.sqla.database_url import DatabaseUrl


@dataclass(frozen=True, slots=True)
class Ground:
    """What a backend stands on."""

    settings: Settings
    url: DatabaseUrl
    watch: SignalWatch


def prepare(settings: Settings, watch: SignalWatch) -> Ground:
    """Set up the log, start the embedded database if no other is named.

    The embedded database is stopped by the process's exit, which `watch` keeps in order. Raises
    ConfigurationError or StartupError.
    """
    configure_logging(settings.log_format, settings.log_level)
    url = settings.database_url or DatabaseUrl.parse(EmbeddedDatabase().start())
    return Ground(settings, url, watch)
