"""Notes on asyncpg, through SQLAlchemy's asyncio engine, with a lifespan that writes at its end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

_forgotten: list[AsyncConnection] = []


def engine_of(app: FastAPI) -> AsyncEngine:
    """The engine that the lifespan has made."""
    engine: AsyncEngine = app.state.engine
    return engine


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The engine, from the start to the end; the last note says that the service has closed."""
    url = os.environ["DATABASE_URL"].partition("://")[2]
    app.state.engine = create_async_engine(f"postgresql+asyncpg://{url}", logging_name="notes")
    async with engine_of(app).begin() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(4712)"))  # workers start together
        await connection.execute(text("CREATE TABLE IF NOT EXISTS example_notes (note text)"))
    yield
    async with engine_of(app).begin() as connection:
        await connection.execute(text("INSERT INTO example_notes VALUES ('closed')"))
    await engine_of(app).dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=201)
async def add(item: str, s: float = 0) -> dict[str, str]:
    """Store a note; `s` seconds in the transaction."""
    async with engine_of(app).begin() as connection:
        await connection.execute(text("INSERT INTO example_notes VALUES (:note)"), {"note": item})
        await connection.execute(text("SELECT pg_sleep(:s)"), {"s": s})
    return {"stored": item}


@app.get("/orders")
async def orders(item: str) -> dict[str, int]:
    """How many there are of a note."""
    async with engine_of(app).connect() as connection:
        query = text("SELECT count(*) FROM example_notes WHERE note = :note")
        return {"count": (await connection.execute(query, {"note": item})).scalar_one()}


@app.get("/slow")
async def slow(s: float) -> dict[str, bool]:
    """A query of so many seconds."""
    async with engine_of(app).connect() as connection:
        await connection.execute(text("SELECT pg_sleep(:s)"), {"s": s})
    return {"slow": True}


@app.get("/leak")
async def leak() -> dict[str, bool]:
    """A connection that nobody returns."""
    _forgotten.append(await engine_of(app).connect())
    await _forgotten[-1].execute(text("SELECT 1"))
    return {"leaked": True}
