"""The baselines' Flask app for our servers. No other framework is loaded here: a process must free it at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pooldrain_compare.baselines import flask_app as recipe

if TYPE_CHECKING:
    from pooldrain_sync.runner import Runner


def flask_app(runner: Runner) -> Any:
    """For `pooldrain-sync --app`."""
    return recipe.make_app(runner.pool.engine)
