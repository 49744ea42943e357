"""The same for FastAPI."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from pooldrain_compare.fleet.table import AFTERWARDS, INSERT, QUERY

engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=3, max_overflow=5, pool_pre_ping=True)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
    """Close the pool at the end."""
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/")
@app.get("/readyz")
async def ready() -> str:
    """What a stock server's health check asks for."""
    return "ready"


@app.get("/work")
async def work() -> str:
    """A query that takes a while."""
    async with engine.connect() as connection:
        await connection.execute(text(QUERY))
    return "done"


@app.post("/orders", status_code=201)
async def order(told: dict[str, Any]) -> str:
    """An order, and something that takes a while after its commit: a mail, a call to another service."""
    async with engine.begin() as connection:
        await connection.execute(text(INSERT), {"id": told["id"]})
    await asyncio.sleep(AFTERWARDS)
    return "created"
