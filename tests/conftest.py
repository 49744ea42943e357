"""What tests of whole services share: a real PostgreSQL, and services as real processes."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from pooldrain.runtime.embedded import EmbeddedDatabase
from pooldrain_compare.harness.servers import SERVERS, Backend
from tests.harness.in_flight import InFlight, Taken
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service

Measured = Callable[[str, float], None]  # what was measured, in seconds


class PutInFlight(Protocol):
    """Puts requests in flight, and at least one in each worker of the service."""

    def __call__(self, service: Service, number: int = 1) -> InFlight: ...


_measured = pytest.StashKey[list[str]]()


def pytest_configure() -> None:
    """Hear SIGINT, also as a shell's background job: processes under test would inherit that it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def measured(pytestconfig: pytest.Config) -> Measured:
    """Takes note of a duration, to be shown when the tests are over."""
    lines = pytestconfig.stash.setdefault(_measured, [])
    return lambda what, seconds: lines.append(f"{what}: {seconds * 1000:.1f} ms")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In one of several processes: hand what was measured to the one that shows it."""
    handed: dict[str, object] | None = getattr(session.config, "workeroutput", None)  # pytest-xdist's
    if handed is not None:
        handed["measured"] = session.config.stash.get(_measured, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it from one of them."""
    lines = node.config.stash.setdefault(_measured, [])
    lines.extend(getattr(node, "workeroutput", {}).get("measured", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was measured."""
    if lines := config.stash.get(_measured, []):
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """The URL of a PostgreSQL that lives as long as the test run."""
    # As root PostgreSQL runs as a user of its own, who has to reach the directory; pytest's own are private.
    with tempfile.TemporaryDirectory(prefix="pooldrain-test-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        with EmbeddedDatabase(Path(directory) / "pgdata") as url:
            with contextlib.closing(Postgres(url)) as connection:
                # It need not survive a power cut, and waiting for the disk is most of what it does otherwise.
                connection.run("ALTER SYSTEM SET fsync = off")
                connection.run("SELECT pg_reload_conf()")
            yield url


@pytest.fixture(scope="session")
def postgres(database_url: str) -> Iterator[Postgres]:
    """A connection to it, to ask what it sees of the services."""
    with contextlib.closing(Postgres(database_url)) as connection:
        yield connection


@pytest.fixture
def services(database_url: str, tmp_path: Path) -> Iterator[Launcher]:
    """Starts services; what still runs at the end of the test is killed."""
    with contextlib.closing(Launcher(database_url, tmp_path)) as launcher:
        yield launcher


@pytest.fixture
def in_flight(postgres: Postgres) -> Iterator[PutInFlight]:
    """Puts requests in flight that wait until they are released."""
    with contextlib.ExitStack() as stack:

        def put(service: Service, number: int = 1) -> InFlight:
            held = InFlight(postgres, service, number)
            stack.callback(held.release)
            return held

        yield put


@pytest.fixture
def taken(database_url: str) -> Iterator[Taken]:
    """Orders that wait until they are released, for who sends them in a way of their own."""
    made = Taken(database_url)
    yield made
    made.release()


@pytest.fixture(scope="module")
def shared_services(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """The same for services that all tests of a module share."""
    with contextlib.closing(Launcher(database_url, tmp_path_factory.mktemp("services"))) as launcher:
        yield launcher


@pytest.fixture(params=SERVERS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each server in turn. A test that is also about several workers parametrises with EVERY_WAY instead."""
    chosen: Backend = request.param
    return chosen
