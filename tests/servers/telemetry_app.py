"""An application that has set up OpenTelemetry's SDK, as its documentation says: `create_sync` and `create_async`.

What is exported is written to the file that EXPORTED names, a JSON line for each export; HANGS has the exporter hang at
its end.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import fastapi
import flask
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from sqlalchemy import text

import pooldrain_async.runner
import pooldrain_sync.runner

SELECT = text("SELECT 1")


class FileExporter(MetricExporter):
    """Writes what it is given."""

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        with Path(os.environ["EXPORTED"]).open("a", encoding="utf-8") as file:
            file.write(metrics_data.to_json(indent=None) + "\n")
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        if os.environ.get("HANGS"):
            time.sleep(60)


def set_up() -> None:
    reader = PeriodicExportingMetricReader(FileExporter(), export_interval_millis=60_000)
    metrics.set_meter_provider(MeterProvider([reader]))


def create_sync(runner: pooldrain_sync.runner.Runner) -> flask.Flask:
    """On threads."""
    set_up()
    app = flask.Flask("telemetry")

    @app.get("/select")
    def select() -> str:
        with runner.pool.engine.connect() as connection:
            return str(connection.execute(SELECT).scalar_one())

    return app


def create_async(runner: pooldrain_async.runner.Runner) -> fastapi.FastAPI:
    """On asyncio."""
    set_up()
    app = fastapi.FastAPI()

    @app.get("/select")
    async def select() -> str:
        async with runner.pool.engine.connect() as connection:
            return str((await connection.execute(SELECT)).scalar_one())

    return app
