"""FastAPI and a plain async SQLAlchemy engine, disposed of in the lifespan: the common recipe."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

engine = create_async_engine(
    os.environ["DATABASE_URL"],
    pool_size=10,
    max_overflow=20,
    pool_pre_ping=True,
    connect_args={"application_name": "baseline"},
)


class Order(BaseModel):
    """What a client orders."""

    id: str
    item: str
    quantity: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Dispose of the engine after the server has stopped."""
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


def pool_status() -> dict[str, Any]:
    """The tutorial's numbers."""
    pool: Any = engine.pool
    return {
        "pool_size": pool.size(),
        "checkedout": pool.checkedout(),
        "overflow": pool.overflow(),
        "idle": pool.checkedin(),
    }


@app.get("/")
async def root() -> dict[str, Any]:
    """The greeting."""
    return {"message": "数据库连接池优雅关闭示例", "pool_status": pool_status()}


@app.get("/db-test")
async def db_test() -> dict[str, Any]:
    """One query."""
    async with engine.connect() as connection:
        result = (await connection.execute(text("SELECT 1"))).scalar()
    return {"status": "success", "result": result, "pool_status": pool_status()}


@app.get("/work")
async def work(ms: int = 0) -> dict[str, Any]:
    """A query that takes `ms` milliseconds."""
    async with engine.connect() as connection:
        await connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": ms / 1000})
    return {"status": "success", "ms": ms}


@app.post("/orders", status_code=201)
async def create_order(order: Order) -> Order:
    """One committed row."""
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO orders (id, item, quantity) VALUES (:id, :item, :quantity) ON CONFLICT DO NOTHING"),
            order.model_dump(),
        )
    return order
