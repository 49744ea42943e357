"""What the threaded service is put together from."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from pooldrain.runtime import assembly
from pooldrain.runtime.options.settings import Settings
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain_sync.middleware import GateMiddleware
from pooldrain_sync.pool import Pool
from pooldrain_sync.runner import Runner

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

BuiltService: TypeAlias = "assembly.BuiltService[Runner, WSGIApplication]"


def build(settings: Settings, url: DatabaseUrl | None) -> BuiltService:
    """The user's application, or the demo; see `assemble`. Raises ConfigurationError."""
    return assembly.assemble(settings, url, pool=Pool, runner=Runner, gate=GateMiddleware, demo=_demo)


def _demo(runner: Runner) -> WSGIApplication:
    from pooldrain_sync.app import create_app  # and its framework, which another application need not have

    return create_app(runner)
