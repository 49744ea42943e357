"""Stop a web service that holds a SQLAlchemy pool, without losing a request, a transaction or a connection."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from pooldrain.errors import ConfigurationError, PoolClosed, PooldrainError, StartupError
from pooldrain.policy import Ladder, LeakPolicy, PoolPolicy, ShutdownPolicy

try:
    __version__ = version("pooldrain")
except PackageNotFoundError:  # run from the source folders, not installed
    __version__ = "0+source"

__all__ = [
    "ConfigurationError",
    "Ladder",
    "LeakPolicy",
    "PoolClosed",
    "PoolPolicy",
    "PooldrainError",
    "ShutdownPolicy",
    "StartupError",
    "__version__",
]
