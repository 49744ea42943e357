"""A shop on Flask-SQLAlchemy, with two binds: its orders, and its archive through another driver."""

from __future__ import annotations

import os

from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

URL = os.environ["DATABASE_URL"].partition("://")[2]

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = f"postgresql+psycopg://{URL}"
app.config["SQLALCHEMY_BINDS"] = {"archive": f"postgresql+psycopg2://{URL}"}
db = SQLAlchemy(app)

_forgotten = []


class Order(db.Model):
    """An order."""

    __tablename__ = "example_orders"
    id = db.Column(db.Integer, primary_key=True)
    item = db.Column(db.String(50))


@app.before_request
def make_tables() -> None:
    """Once, at the first request: engines may come late."""
    if not app.extensions.get("made"):
        with db.engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(4710)"))  # the first requests come together
            db.metadatas[None].create_all(connection)
        app.extensions["made"] = True


@app.post("/orders")
def add():
    """Store an order; `?s=0.5` takes its time in the transaction."""
    db.session.add(Order(item=request.args["item"]))
    db.session.execute(text("SELECT pg_sleep(:s)"), {"s": float(request.args.get("s", 0))})
    db.session.commit()
    return {"stored": request.args["item"]}, 201


@app.get("/orders")
def orders():
    """How many there are of an item."""
    return {"count": db.session.query(Order).filter_by(item=request.args["item"]).count()}


@app.get("/slow")
def slow():
    """A query of so many seconds, in the archive."""
    with db.engines["archive"].connect() as connection:
        connection.execute(text("SELECT pg_sleep(:s)"), {"s": float(request.args["s"])})
    return {"slow": True}


@app.get("/leak")
def leak():
    """A connection of the archive that nobody returns."""
    _forgotten.append(db.engines["archive"].connect())
    _forgotten[-1].execute(text("SELECT 1"))
    return {"leaked": True}
