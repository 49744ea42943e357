"""Flask over a plain SQLAlchemy engine, as it is written today. A recipe adds what disposes of the engine."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, request
from sqlalchemy import Connection, Engine, create_engine, text


def make_engine(url: str | None = None) -> Engine:
    """The tutorial's pool; on the database that DATABASE_URL names, if no other."""
    return create_engine(
        url or os.environ["DATABASE_URL"],
        pool_size=10,
        max_overflow=20,
        pool_pre_ping=True,
        connect_args={"application_name": "baseline"},
    )


def make_app(engine: Engine) -> Flask:
    """The demo's routes over `engine`."""
    app = Flask(__name__)
    leaked: list[Connection] = []

    def pool_status() -> dict[str, Any]:
        pool: Any = engine.pool
        return {
            "pool_size": pool.size(),
            "checkedout": pool.checkedout(),
            "overflow": pool.overflow(),
            "idle": pool.checkedin(),
        }

    @app.get("/")
    def root() -> dict[str, Any]:
        return {"message": "数据库连接池优雅关闭示例", "pool_status": pool_status()}

    @app.get("/ping")
    def ping() -> str:
        return "pong"

    @app.get("/db-test")
    def db_test() -> dict[str, Any]:
        with engine.connect() as connection:
            result = connection.execute(text("SELECT 1")).scalar()
        return {"status": "success", "result": result, "pool_status": pool_status()}

    @app.get("/db-test-leak")
    def db_test_leak() -> dict[str, Any]:
        connection = engine.connect()
        leaked.append(connection)
        result = connection.execute(text("SELECT 1")).scalar()
        return {"status": "success", "result": result, "pool_status": pool_status()}

    @app.get("/work")
    def work() -> dict[str, Any]:
        ms = int(request.args["ms"])
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": ms / 1000})
        return {"status": "success", "ms": ms}

    @app.post("/orders")
    def create_order() -> tuple[dict[str, Any], int]:
        order = request.get_json()
        with engine.begin() as connection:
            connection.execute(
                text("INSERT INTO orders (id, item, quantity) VALUES (:id, :item, :quantity) ON CONFLICT DO NOTHING"),
                order,
            )
        return order, 201

    return app
