"""What the asyncio service is put together from."""

from __future__ import annotations

from typing import TypeAlias

from starlette.types import ASGIApp

from pooldrain.runtime import assembly
from pooldrain.runtime.options.settings import Settings
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain_async.middleware import GateMiddleware
from pooldrain_async.pool import Pool
from pooldrain_async.runner import Runner

BuiltService: TypeAlias = assembly.BuiltService[Runner, ASGIApp]


def build(settings: Settings, url: DatabaseUrl | None) -> BuiltService:
    """The user's application, or the demo; see `assemble`. Raises ConfigurationError."""
    return assembly.assemble(settings, url, pool=Pool, runner=Runner, gate=GateMiddleware, demo=_demo)


def _demo(runner: Runner) -> ASGIApp:
    from pooldrain_async.app import create_app  # and its framework, which another application need not have

    return create_app(runner)
