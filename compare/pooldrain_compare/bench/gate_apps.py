"""The baselines' apps with pooldrain's gate around them, and nothing else of pooldrain, for stock servers.

`flask_app` and `fastapi_app` are gated; the bare ones are those of `baselines`.
"""

from __future__ import annotations

import threading
from typing import Any

import pooldrain_async.pool
import pooldrain_async.runner
import pooldrain_sync.pool
import pooldrain_sync.runner
from pooldrain.policy import LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain.runtime.database_url import DatabaseUrl
from pooldrain_async.middleware import GateMiddleware as AsyncGate
from pooldrain_compare.bench.pools import Silence
from pooldrain_sync.middleware import GateMiddleware as SyncGate

_URL = DatabaseUrl.parse("sqlite:///never-opened.db")


def gated_flask() -> Any:
    """A factory for waitress: the plain Flask app behind the gate."""
    from pooldrain_compare.baselines.flask_app import app

    return gate_wsgi(app)


def gated_fastapi() -> Any:
    """A factory for uvicorn: the plain FastAPI app behind the gate."""
    from pooldrain_compare.baselines.fastapi_app import app

    return gate_asgi(app)


def gate_wsgi(app: Any) -> Any:
    """`app` behind the threaded shell's gate."""
    lock = threading.RLock()
    pool = pooldrain_sync.pool.PoolManager(_URL, PoolPolicy(), LeakPolicy(), Silence(), service="bench", lock=lock)
    return SyncGate(app, pooldrain_sync.runner.Runner(pool, ShutdownPolicy(), lock=lock))


def gate_asgi(app: Any) -> Any:
    """`app` behind the asyncio shell's gate."""
    lock = threading.RLock()
    pool = pooldrain_async.pool.PoolManager(_URL, PoolPolicy(), LeakPolicy(), Silence(), service="bench", lock=lock)
    return AsyncGate(app, pooldrain_async.runner.Runner(pool, ShutdownPolicy(), lock=lock))
