"""Engines of either colour in either backend, probes of the application's own, pages of its own, on real servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pooldrain_compare.harness.servers import GUNICORN, SERVERS, UVICORN, Backend
from tests.harness.service import Launcher, Service
from tests.harness.waiting import eventually

all_servers = pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.name)

FLASK = """
import asyncio, os
from flask import Flask, Response
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

url = os.environ["DATABASE_URL"].partition("://")[2]
engine = create_engine("postgresql+psycopg://" + url, pool_size=1, max_overflow=0, pool_timeout=0.1, logging_name="one")
other_colour = create_async_engine("postgresql+psycopg://" + url, poolclass=NullPool, logging_name="other colour")
refused = create_engine("postgresql+psycopg://nobody:geheim@127.0.0.1:1/nowhere", logging_name="refused")
app = Flask(__name__)
kept = []

@app.get("/livez")
def livez():
    return "mine"

@app.get("/readyz")
def readyz():
    return "mine, too"

@app.get("/other-colour")
def other():
    async def ask():
        async with other_colour.connect() as connection:
            return (await connection.execute(text("SELECT 5"))).scalar()
    return str(asyncio.run(ask()))

@app.get("/keep")
def keep():
    kept.append(engine.connect())
    return "kept"

@app.get("/query")
def query():
    with engine.connect() as connection:
        return str(connection.execute(text("SELECT 1")).scalar())

@app.get("/refused")
def never():
    refused.connect()

@app.get("/broken-page")
def broken_page():
    try:
        refused.connect()
    except Exception:
        def body():
            raise ValueError("no page either")
            yield ""
        return Response(body(), 500)

@app.get("/own-page")
def own_page():
    try:
        refused.connect()
    except Exception:
        return Response("my own words", 500)

@app.get("/other-error")
def other_error():
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    raise ValueError("nothing to do with a database")
"""

FASTAPI = """
import os
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

url = os.environ["DATABASE_URL"].partition("://")[2]
engine = create_async_engine(
    "postgresql+psycopg://" + url, pool_size=1, max_overflow=0, pool_timeout=0.1, logging_name="one"
)
other_colour = create_engine("postgresql+psycopg2://" + url, logging_name="other colour")
refused = create_async_engine("postgresql+asyncpg://nobody:geheim@127.0.0.1:1/nowhere", logging_name="refused")
app = FastAPI()
kept = []

@app.get("/livez")
def livez():
    return Response("mine")

@app.get("/readyz")
def readyz():
    return Response("mine, too")

@app.get("/other-colour")
def other():
    with other_colour.connect() as connection:
        return Response(str(connection.execute(text("SELECT 5")).scalar()))

@app.get("/keep")
async def keep():
    kept.append(await engine.connect())
    return Response("kept")

@app.get("/query")
async def query():
    async with engine.connect() as connection:
        return Response(str((await connection.execute(text("SELECT 1"))).scalar()))

@app.get("/refused")
async def never():
    await refused.connect()

@app.get("/broken-page")
async def broken_page():
    try:
        await refused.connect()
    except Exception:
        async def body():
            raise ValueError("no page either")
            yield ""
        return StreamingResponse(body(), 500)

@app.get("/own-page")
async def own_page():
    try:
        await refused.connect()
    except Exception:
        return Response("my own words", 500)

@app.get("/other-error")
async def other_error():
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    raise ValueError("nothing to do with a database")
"""


def start(services: Launcher, backend: Backend, place: Path, *options: str) -> Service:
    (place / "adopted_app.py").write_text(FLASK if backend.module == "pooldrain_sync" else FASTAPI, "utf-8")
    return services.start_users(backend, "adopted_app:app", place, *options)


@all_servers
def test_engines_of_both_colours_are_tracked_and_closed(services: Launcher, tmp_path: Path, backend: Backend) -> None:
    service = start(services, backend, tmp_path)
    assert service.get("/other-colour").body == b"5"
    assert service.get("/query").body == b"1"
    service.send_signal()
    assert service.ended().code == 0
    pools = {row["pool"]: (row["opened"], row["closed"]) for row in service.report["pools"]}
    assert pools["other colour"] == pools["one"] == (1, 1)
    assert {event["pool"] for event in service.events("engine_adopted")} == {"one", "other colour", "refused"}


@all_servers
def test_what_keeps_a_request_from_its_database_is_explained_and_nothing_else_is(
    services: Launcher, tmp_path: Path, backend: Backend
) -> None:
    service = start(services, backend, tmp_path)
    refused = service.get("/refused")
    assert (refused.status, refused.header("retry-after")) == (503, "1")
    assert refused.json["detail"] == "the database is out of reach"
    own = service.get("/own-page")
    assert (own.status, own.body) == (500, b"my own words")
    other = service.get("/other-error")
    assert (other.status, other.header("content-type")) != (500, "application/problem+json")
    assert other.status == 500
    assert service.get("/keep").status == 200
    exhausted = service.get("/query")
    assert (exhausted.status, exhausted.header("retry-after")) == (503, "1")
    assert exhausted.json["detail"] == "no database connection became free in time"
    service.send_signal()
    assert service.ended().code == 0
    assert "geheim" not in (service.directory / f"{backend.name}.log").read_text("utf-8").replace("nobody:geheim@", "")


@all_servers
def test_a_page_that_fails_as_well_keeps_no_request_in_flight(
    services: Launcher, tmp_path: Path, backend: Backend
) -> None:
    service = start(services, backend, tmp_path)
    service.connect().ask("GET", "/broken-page")  # some servers break it off, some say that it failed
    eventually(lambda: any(e["event"] == "request_finished" for e in service.transcript), "it has ended")
    service.send_signal()
    assert service.ended().code == 0


@all_servers
def test_the_applications_own_probes_answer_until_the_announcement(
    services: Launcher, tmp_path: Path, backend: Backend
) -> None:
    service = start(services, backend, tmp_path, "--probes", "app", "--announce-period", "60")
    assert [service.get(path).body for path in ("/livez", "/readyz")] == [b"mine", b"mine, too"]
    service.send_signal()
    service.await_announcing()
    assert service.get("/readyz").status == 503
    assert service.get("/livez").json == {"status": "alive"}
    service.send_signal()
    assert service.ended().code == 0


@all_servers
def test_probes_may_be_elsewhere_or_off(services: Launcher, tmp_path: Path, backend: Backend) -> None:
    paths = ("--livez-path", "/alive", "--readyz-path", "/ready")
    service = start(services, backend, tmp_path, *paths)
    assert [service.get(path).status for path in ("/alive", "/ready")] == [200, 200]
    assert service.get("/livez").body == b"mine"
    service.send_signal()
    service.ended()
    off = start(services, backend, tmp_path, "--probes", "off")
    assert off.get("/livez").body == b"mine"
    off.send_signal()
    off.ended()


@pytest.mark.parametrize("backend", [GUNICORN, UVICORN], ids=lambda backend: backend.name)
def test_an_engine_that_is_made_in_the_master_is_each_workers_own(
    services: Launcher, tmp_path: Path, backend: Backend
) -> None:
    service = start(services, backend, tmp_path, "--preload", "--workers", "1")
    assert service.get("/query").body == b"1"
    service.send_signal()
    assert service.ended().code == 0
    assert [row["opened"] for row in service.report["pools"] if row["pool"] == "one"] == [1]
