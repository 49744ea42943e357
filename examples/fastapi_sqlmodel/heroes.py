"""Heroes on SQLModel: a threads' engine in an asyncio server, as FastAPI's own tutorial has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import Connection, func, text
from sqlmodel import Field, Session, SQLModel, create_engine, select

engine = create_engine("postgresql+psycopg://" + os.environ["DATABASE_URL"].partition("://")[2], pool_pre_ping=True)
app = FastAPI()
_forgotten: list[Connection] = []


class Hero(SQLModel, table=True):
    """A hero."""

    __tablename__ = "example_heroes"
    id: int | None = Field(default=None, primary_key=True)
    name: str


def session() -> Iterator[Session]:
    """A session for one request, closed behind its answer."""
    with Session(engine) as opened:
        yield opened


OneSession = Annotated[Session, Depends(session)]


@app.on_event("startup")
def make_tables() -> None:
    """Make what is missing."""
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(4711)"))  # workers start together
        SQLModel.metadata.create_all(connection)


@app.post("/orders", status_code=201)
def add(item: str, opened: OneSession, s: float = 0) -> dict[str, str]:
    """Store a hero; `s` seconds in the transaction."""
    opened.add(Hero(name=item))
    opened.execute(text("SELECT pg_sleep(:s)"), {"s": s})
    opened.commit()
    return {"stored": item}


@app.get("/orders")
def orders(item: str, opened: OneSession) -> dict[str, int]:
    """How many there are of a name."""
    return {"count": opened.exec(select(func.count()).select_from(Hero).where(Hero.name == item)).one()}


@app.get("/slow")
def slow(s: float, opened: OneSession) -> dict[str, bool]:
    """A query of so many seconds."""
    opened.execute(text("SELECT pg_sleep(:s)"), {"s": s})
    return {"slow": True}


@app.get("/leak")
def leak() -> dict[str, bool]:
    """A connection that nobody returns."""
    _forgotten.append(engine.connect())
    _forgotten[-1].execute(text("SELECT 1"))
    return {"leaked": True}
