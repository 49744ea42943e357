"""The baselines' apps for stock servers, with pooldrain's gate around them and nothing else, and without."""

from __future__ import annotations

from typing import Any

from pooldrain_async.middleware import GateMiddleware as AsyncGate
from pooldrain_compare.baselines import fastapi_app as fastapi_recipe
from pooldrain_compare.baselines import flask_app as flask_recipe
from pooldrain_compare.bench.shells import NEVER_OPENED, async_runner, sync_runner
from pooldrain_sync.middleware import GateMiddleware as SyncGate


def bare_flask() -> Any:
    """A factory for stock waitress."""
    return flask_recipe.make_app(flask_recipe.make_engine())


def gated_flask() -> Any:
    """The same behind the gate."""
    return gate_wsgi(bare_flask())


def bare_fastapi() -> Any:
    """A factory for stock uvicorn."""
    return fastapi_recipe.make_app(fastapi_recipe.make_engine())


def gated_fastapi() -> Any:
    """The same behind the gate."""
    return gate_asgi(bare_fastapi())


def gate_wsgi(app: Any) -> Any:
    """`app` behind the threaded shell's gate."""
    return SyncGate(app, sync_runner(NEVER_OPENED))


def gate_asgi(app: Any) -> Any:
    """`app` behind the asyncio shell's gate."""
    return AsyncGate(app, async_runner(NEVER_OPENED))
