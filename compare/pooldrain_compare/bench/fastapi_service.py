"""The baselines' FastAPI app for our servers. No other framework is loaded here: a process must free it at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pooldrain_compare.baselines import fastapi_app as recipe

if TYPE_CHECKING:
    from pooldrain_async.runner import Runner


def fastapi_app(runner: Runner) -> Any:
    """For `pooldrain-async --app`."""
    return recipe.make_app(runner.pool.engine)
