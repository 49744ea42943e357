"""Gunicorn's usual place to close a pool: the hook that a worker calls as it leaves."""

from __future__ import annotations

from typing import Any


def worker_exit(server: Any, worker: Any) -> None:
    """Dispose of the engine."""
    from pooldrain_compare.baselines.flask_gunicorn import engine

    engine.dispose()
