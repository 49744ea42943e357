"""Stop a web service that holds a SQLAlchemy pool, without losing a request, a transaction or a connection."""

from __future__ import annotations

from pooldrain.current import current_runner, on_shutdown
from pooldrain.errors import ConfigurationError, PoolClosed, PooldrainError, StartupError
from pooldrain.policy import Ladder, LeakPolicy, PoolPolicy, ShutdownPolicy

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
    "on_shutdown",
]


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and seldom asked for

    try:
        return version("pooldrain")
    except PackageNotFoundError:  # run from the source folders, not installed
        return "0+source"
