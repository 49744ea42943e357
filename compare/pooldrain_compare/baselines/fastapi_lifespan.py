"""FastAPI for every ASGI server: the engine is disposed of at the end of the lifespan."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from pooldrain_compare.baselines.fastapi_app import make_app, make_engine

engine = make_engine()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Dispose of the engine when the server has stopped."""
    yield
    await engine.dispose()


app = make_app(engine, lifespan=lifespan)
