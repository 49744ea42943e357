"""Flask and a plain SQLAlchemy engine, disposed of at exit: the common recipe."""

from __future__ import annotations

import atexit
import os
from typing import Any

from flask import Flask, request
from sqlalchemy import create_engine, text

app = Flask(__name__)
engine = create_engine(
    os.environ["DATABASE_URL"],
    pool_size=10,
    max_overflow=20,
    pool_pre_ping=True,
    connect_args={"application_name": "baseline"},
)
atexit.register(engine.dispose)  # for servers without a hook of their own


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
def root() -> dict[str, Any]:
    """The greeting."""
    return {"message": "数据库连接池优雅关闭示例", "pool_status": pool_status()}


@app.get("/db-test")
def db_test() -> dict[str, Any]:
    """One query."""
    with engine.connect() as connection:
        result = connection.execute(text("SELECT 1")).scalar()
    return {"status": "success", "result": result, "pool_status": pool_status()}


@app.get("/work")
def work() -> dict[str, Any]:
    """A query that takes `ms` milliseconds."""
    ms = int(request.args.get("ms", "0"))
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": ms / 1000})
    return {"status": "success", "ms": ms}


@app.post("/orders")
def create_order() -> tuple[dict[str, Any], int]:
    """One committed row."""
    order = request.get_json()
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO orders (id, item, quantity) VALUES (:id, :item, :quantity) ON CONFLICT DO NOTHING"), order
        )
    return order, 201
