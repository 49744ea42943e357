"""The pytest plugin: tests that leak fail, by name; others do not; nothing happens unless it is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import asyncio, threading
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

kept = []

def engine(url="sqlite://", **options):
    return create_engine(url, poolclass=options.pop("poolclass", QueuePool), **options)
"""

LEAKS = {
    "a connection that is kept": "def test_it(): kept.append(engine().connect())",
    "a session that is open": """
def test_it():
    session = Session(engine())
    session.execute(text("select 42"))
    kept.append(session)
""",
    "a connection that is dropped": """
def test_it():
    made = engine(logging_name="shop")
    made.connect().execute(text("select 1"))
""",
    "a connection in a cycle": """
def test_it():
    class Holder: pass
    holder = Holder()
    holder.itself = holder
    holder.connection = engine().connect()
""",
    "a pool that keeps none": "def test_it(): kept.append(engine('sqlite:///n.db', poolclass=NullPool).connect())",
    "a pool of one": "def test_it(): kept.append(engine(poolclass=StaticPool).connect())",
    "an engine of before": """
early = engine()
def test_it(): kept.append(early.connect())
""",
    "another thread": """
def test_it():
    made = engine(connect_args={"check_same_thread": False})
    thread = threading.Thread(target=lambda: kept.append(made.connect()), name="worker-1")
    thread.start()
    thread.join()
""",
    "asyncio": """
def test_it():
    async def go():
        made = create_async_engine("sqlite+aiosqlite:///a.db")
        connection = await made.connect()
        kept.append((made, connection))
        await connection.execute(text("select 7"))
    asyncio.run(go())
""",
    "a request": """
def test_it():
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///f.db"
    database = SQLAlchemy(app)
    @app.get("/leak")
    def leak():
        kept.append(database.engine.connect())
        return "leaked"
    assert app.test_client().get("/leak").text == "leaked"
""",
    "a fixture of the test's own": """
@pytest.fixture
def connection():
    return engine().connect()
def test_it(connection): kept.append(connection)
""",
}

FINE = """
@pytest.fixture(scope="session")
def whole():
    with engine().connect() as connection:
        yield connection
def test_a_fixture_of_the_session(whole): assert whole.execute(text("select 1")).scalar() == 1

@pytest.fixture
def session():
    with Session(engine()) as session:
        yield session
def test_a_fixture_of_its_own(session): session.execute(text("select 1"))

def test_a_transaction():
    with engine().begin() as connection:
        connection.execute(text("select 1"))

def test_what_raises():
    with pytest.raises(ZeroDivisionError), engine().connect():
        1 / 0

def test_asyncio():
    async def go():
        made = create_async_engine("sqlite+aiosqlite:///b.db")
        async with made.begin() as connection:
            await connection.execute(text("select 7"))
        await made.dispose()
    asyncio.run(go())

@pytest.mark.allow_leaked_connections
def test_what_may(): kept.append(engine().connect())
"""


def run_pytest(directory: Path, body: str, *options: str, configuration: str = "") -> tuple[int, str]:
    """pytest's exit code, and what it says, on a file of these tests."""
    (directory / "test_them.py").write_text(HEAD + body, "utf-8")
    (directory / "pytest.ini").write_text(f"[pytest]\n{configuration}\n", "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each test that leaks; all of them are run at once."""
    bodies = [body.replace("test_it", f"test_{number}").strip() for number, body in enumerate(LEAKS.values())]
    code, output = run_pytest(tmp_path_factory.mktemp("leaks"), "\n\n".join(bodies), "--fail-on-leaked-connections")
    assert code == 1
    told = re.split(r"_+ ERROR at teardown of test_(\d+) _+", output.partition("short test summary")[0])
    return {list(LEAKS)[int(number)]: text for number, text in zip(told[1::2], told[2::2], strict=True)}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_test_that_leaks_fails_and_its_line_is_named(said: dict[str, str], leak: str) -> None:
    assert "the test leaked 1 connection:" in said[leak]
    assert re.search(r"checked out at test_them\.py:\d+ in ", said[leak])


def test_it_is_said_which_engine_it_was_what_it_ran_last_and_in_which_thread(said: dict[str, str]) -> None:
    session = said["a session that is open"]
    assert "not returned: sqlite (QueuePool), checked out at " in session
    assert "last statement: select 42" in session
    assert "dropped, and collected: shop (QueuePool), checked out at " in said["a connection that is dropped"]
    assert ", by thread worker-1" in said["another thread"]


def test_nobody_else_fails(tmp_path: Path) -> None:
    code, said = run_pytest(tmp_path, FINE, "--fail-on-leaked-connections")
    assert code == 0, said
    assert "6 passed" in said


def test_a_fixture_of_a_wider_scope_answers_for_itself(tmp_path: Path) -> None:
    body = """
@pytest.fixture(scope="module")
def whole():
    connection = engine().connect()
    kept.append(connection)
    yield connection
def test_one(whole): pass
def test_two(whole): pass
"""
    code, said = run_pytest(tmp_path, body, "--fail-on-leaked-connections")
    assert code == 1
    assert "the fixture whole leaked 1 connection:" in said
    assert "2 passed, 1 error" in said


def test_the_configuration_turns_it_on(tmp_path: Path) -> None:
    body = LEAKS["a connection that is kept"]
    code, said = run_pytest(tmp_path, body, configuration="pooldrain_leaks = error")
    assert code == 1
    assert "the test leaked 1 connection:" in said


def test_nothing_happens_unless_it_is_asked_for(tmp_path: Path) -> None:
    code, said = run_pytest(tmp_path, LEAKS["a connection that is kept"])
    assert (code, "leaked" in said) == (0, False)


def test_a_setting_that_means_nothing_is_told_in_one_line(tmp_path: Path) -> None:
    code, said = run_pytest(tmp_path, "", configuration="pooldrain_leaks = warn")
    assert code == 4
    assert "pooldrain_leaks must be off or error, not 'warn'" in said
    assert "Traceback" not in said
