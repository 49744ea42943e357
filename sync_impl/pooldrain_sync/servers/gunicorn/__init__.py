"""gunicorn with its threaded worker, and with a drain."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pooldrain.runtime.startup import Ground


def serve(ground: Ground) -> int:
    """Serve from one process or several, under a master, until a signal has led to the end; the exit code."""
    from pooldrain.runtime.master.master import run_master
    from pooldrain_sync.servers.gunicorn.worker import DrainWorker

    return run_master(ground, DrainWorker, lambda: _build(ground))


def _build(ground: Ground) -> object:
    from pooldrain_sync.assembly import build  # the frameworks: for a master only if it is to preload

    return build(ground.settings, ground.url)
