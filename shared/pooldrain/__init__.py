"""Stop a web service that holds a SQLAlchemy pool, without losing a request, a transaction or a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pooldrain.current import current_runner, on_shutdown
from pooldrain.errors import ConfigurationError, PoolClosed, PooldrainError, StartupError
from pooldrain.ledger import hold_as
from pooldrain.policy import Ladder, LeakPolicy, PoolPolicy, ShutdownPolicy

if TYPE_CHECKING:
    from pooldrain.sqla.tracking import track

__all__ = [
    "ConfigurationError",
    "Ladder",
    "LeakPolicy",
    "PoolClosed",
    "PoolPolicy",
    "PooldrainError",
    "ShutdownPolicy",
    "StartupError",
    "current_runner",
    "hold_as",
    "on_shutdown",
    "track",
]


def __getattr__(name: str) -> Any:
    if name == "track":  # it brings SQLAlchemy along
        from pooldrain.sqla.tracking import track

        return track
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and seldom asked for

    try:
        return version("pooldrain")
    except PackageNotFoundError:  # run from the source folders, not installed
        return "0+source"
