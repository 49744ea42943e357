"""Who is measured against whom: our servers and the baselines, all serving the baselines' app in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain_compare import baselines
from pooldrain_compare.baselines import BASELINES, THREADS, Baseline
from pooldrain_compare.bench.results import POOLS, SERVERS, Colour, SystemInfo
from pooldrain_compare.harness import servers
from pooldrain_compare.harness.processes import ServerProcess, free_port
from pooldrain_compare.harness.servers import UVICORN, Backend

_BENCH = "pooldrain_compare.bench"

# Ours, and the same without pooldrain: what a ratio is taken of.
PARTNERS = {
    "pooldrain-gunicorn": "plain-gunicorn",
    "pooldrain-waitress": "plain-waitress",
    "pooldrain-uvicorn": "plain-uvicorn",
    "pooldrain-threads": "sqlalchemy-threads",
    "pooldrain-asyncio": "sqlalchemy-asyncio",
}


@dataclass(frozen=True, slots=True)
class Ours:
    """One of our servers with the baselines' app, so that both sides do the same work."""

    backend: Backend
    colour: Colour
    app: str

    @property
    def info(self) -> SystemInfo:
        """What is said about it."""
        command = self.backend.module.replace("_", "-")
        server = " ".join(("", *self.backend.options))
        threads = f" --threads {THREADS}" if self.colour == "sync" else ""
        return SystemInfo(
            label=f"pooldrain · {self.backend.name}",
            recipe=f"{command}{server}{threads} --app {self.app.rpartition('.')[2]}",
            ours=True,
            colour=self.colour,
        )

    @property
    def sessions(self) -> str:
        """What the application names of its database sessions begin with."""
        return self.backend.sessions

    def process(self, url: str, directory: Path, *, threads: int = THREADS, bound: int | None = None) -> ServerProcess:
        """A process that is not started yet; `bound`: seconds until hung requests are cancelled."""
        options = ["--app", self.app]
        if self.colour == "sync":
            options += ["--threads", str(threads)]
        if bound is not None:
            options += ["--drain-timeout", str(bound), "--cancel-timeout", str(bound)]
        return self.backend.process(url, directory, *options, observed=False)


@dataclass(frozen=True, slots=True)
class Theirs:
    """A baseline."""

    baseline: Baseline

    @property
    def info(self) -> SystemInfo:
        """What is said about it."""
        return SystemInfo(self.baseline.label, self.baseline.recipe, ours=False, colour=self.baseline.colour)

    @property
    def sessions(self) -> str:
        """What the application names of its database sessions begin with."""
        return baselines.APPLICATION_NAME

    def process(self, url: str, directory: Path, *, threads: int = THREADS, bound: int | None = None) -> ServerProcess:
        """A process that is not started yet; `bound`: seconds until its server gives a hung request up."""
        port = free_port()
        plain = DatabaseUrl.parse(url).sync_url.render_as_string(hide_password=False)
        return ServerProcess(
            self.baseline.argv(port, threads=threads, bound=bound),
            log=directory / f"{self.baseline.name}.log",
            address=("127.0.0.1", port),
            environment=self.baseline.environment(plain, bound=bound),
        )


Contender = Ours | Theirs


def _place(name: str) -> tuple[bool, str]:
    """Each of ours beside its partner, the rest behind them."""
    partner = PARTNERS.get(name, name)
    return partner not in PARTNERS.values(), partner


_OURS: dict[str, Contender] = {
    f"pooldrain-{backend.name}": Ours(
        backend,
        "async" if backend is UVICORN else "sync",
        f"{_BENCH}.{'fastapi_service:fastapi_app' if backend is UVICORN else 'flask_service:flask_app'}",
    )
    for backend in servers.SERVERS
}
OURS = tuple(_OURS)
_THEIRS: dict[str, Contender] = {name: Theirs(baseline) for name, baseline in BASELINES.items()}
CONTENDERS: dict[str, Contender] = {name: (_OURS | _THEIRS)[name] for name in SERVERS}
PAIRED = tuple(sorted(CONTENDERS, key=_place))  # so that whoever is compared is measured right after the other


def server_infos(*names: str) -> dict[str, SystemInfo]:
    """What is said about these servers; about all, if none is named."""
    return {name: CONTENDERS[name].info for name in names or SERVERS}


_POOL_INFOS = {
    "pooldrain-threads": SystemInfo("pooldrain · threads", "pooldrain_sync's Pool", ours=True, colour="sync"),
    "pooldrain-asyncio": SystemInfo("pooldrain · asyncio", "pooldrain_async's Pool", ours=True, colour="async"),
    "sqlalchemy-threads": SystemInfo("SQLAlchemy · threads", "create_engine, QueuePool", ours=False, colour="sync"),
    "sqlalchemy-asyncio": SystemInfo(
        "SQLAlchemy · asyncio", "create_async_engine, AsyncAdaptedQueuePool", ours=False, colour="async"
    ),
    "psycopg-pool": SystemInfo("psycopg_pool", "ConnectionPool, getconn, putconn", ours=False, colour="sync"),
    "psycopg-pool-async": SystemInfo("psycopg_pool, async", "AsyncConnectionPool", ours=False, colour="async"),
    "asyncpg-pool": SystemInfo("asyncpg", "create_pool, acquire, release", ours=False, colour="async"),
}


def pool_infos(*names: str) -> dict[str, SystemInfo]:
    """What is said about these pools; about all, if none is named."""
    return {name: _POOL_INFOS[name] for name in names or POOLS}
