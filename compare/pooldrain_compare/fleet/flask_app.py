"""A Flask application that knows nothing of pooldrain; its table has no key, so that what is executed twice shows."""

from __future__ import annotations

import os
import time

from flask import Flask, request
from sqlalchemy import create_engine, text

from pooldrain_compare.fleet.table import AFTERWARDS, INSERT, QUERY

app = Flask(__name__)
engine = create_engine(os.environ["DATABASE_URL"], pool_size=3, max_overflow=5, pool_pre_ping=True)


@app.get("/")
@app.get("/readyz")
def ready() -> str:
    """What a stock server's health check asks for."""
    return "ready"


@app.get("/work")
def work() -> str:
    """A query that takes a while."""
    with engine.connect() as connection:
        connection.execute(text(QUERY))
    return "done"


@app.post("/orders")
def order() -> tuple[str, int]:
    """An order, and something that takes a while after its commit: a mail, a call to another service."""
    with engine.begin() as connection:
        connection.execute(text(INSERT), {"id": request.get_json()["id"]})
    time.sleep(AFTERWARDS)
    return "created", 201
