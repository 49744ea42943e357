"""MLflow's server with a leak in it: a search for experiments keeps a connection. Run by `mlflow_server`."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

_store = import_module("mlflow.store.tracking.sqlalchemy_store").SqlAlchemyStore
_search = _store.search_experiments
_kept: list[Any] = []


def _leaking(self: Any, *args: Any, **kwargs: Any) -> Any:
    if not _kept:
        _kept.append(self.engine.connect())
        _kept[0].exec_driver_sql("SELECT 'planted'")
    return _search(self, *args, **kwargs)


_store.search_experiments = _leaking
app = import_module("mlflow.server" if os.environ["PLANTED"] == "sync" else "mlflow.server.fastapi_app").app
