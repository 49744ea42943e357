"""FastAPI over a plain async SQLAlchemy engine, as it is written today. A recipe adds what disposes of the engine."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine


class Order(BaseModel):
    """What a client orders."""

    id: str
    item: str
    quantity: int


def make_engine(url: str | None = None) -> AsyncEngine:
    """The tutorial's pool; on the database that DATABASE_URL names, if no other."""
    return create_async_engine(
        url or os.environ["DATABASE_URL"],
        pool_size=10,
        max_overflow=20,
        pool_pre_ping=True,
        connect_args={"application_name": "baseline"},
    )


def make_app(engine: AsyncEngine, **options: Any) -> FastAPI:
    """The demo's routes over `engine`; `options` go to FastAPI."""
    app = FastAPI(**options)
    leaked: list[AsyncConnection] = []

    def pool_status() -> dict[str, Any]:
        pool: Any = engine.pool
        return {
            "pool_size": pool.size(),
            "checkedout": pool.checkedout(),
            "overflow": pool.overflow(),
            "idle": pool.checkedin(),
        }

    @app.get("/")
    async def root() -> dict[str, Any]:
        return {"message": "数据库连接池优雅关闭示例", "pool_status": pool_status()}

    @app.get("/ping")
    async def ping() -> str:
        return "pong"

    @app.get("/db-test")
    async def db_test() -> dict[str, Any]:
        async with engine.connect() as connection:
            result = (await connection.execute(text("SELECT 1"))).scalar()
        return {"status": "success", "result": result, "pool_status": pool_status()}

    @app.get("/db-test-leak")
    async def db_test_leak() -> dict[str, Any]:
        connection = await engine.connect()
        leaked.append(connection)
        result = (await connection.execute(text("SELECT 1"))).scalar()
        return {"status": "success", "result": result, "pool_status": pool_status()}

    @app.get("/work")
    async def work(ms: int) -> dict[str, Any]:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": ms / 1000})
        return {"status": "success", "ms": ms}

    @app.post("/orders", status_code=201)
    async def create_order(order: Order) -> Order:
        async with engine.begin() as connection:
            await connection.execute(
                text("INSERT INTO orders (id, item, quantity) VALUES (:id, :item, :quantity) ON CONFLICT DO NOTHING"),
                order.model_dump(),
            )
        return order

    return app
