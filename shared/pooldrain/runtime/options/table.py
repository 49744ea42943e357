"""The table of options: what there is, from which come parser, environment variables and documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_args

from pooldrain.policy import HttpPolicy, LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain.proxies import TrustedProxies
from pooldrain.runtime.options.application import parse_app
from pooldrain.runtime.options.readers import (
    METAVARS,
    OneOf,
    access_form,
    address_or_off,
    addresses,
    boolean,
    bytes_or_off,
    directory,
    existing_file,
    group,
    init,
    log_format,
    log_level,
    loop,
    not_negative,
    octal,
    output_file,
    pooler,
    positive,
    positive_or_off,
    probe_path,
    probes,
    root_path,
    seconds,
    seconds_or_off,
    streams,
    sync_server,
    token,
    user,
    whole,
)
from pooldrain.servers import Backend, servers_of
from pooldrain.sqla.database_url import DatabaseUrl

BACKENDS: tuple[Backend, ...] = get_args(Backend)


PREFIX = "POOLDRAIN_"


POLICY_DEFAULTS = {
    field.name: field.default
    for policy in (HttpPolicy, PoolPolicy, LeakPolicy, ShutdownPolicy)
    for field in fields(policy)
}


@dataclass(frozen=True, slots=True)
class Option:
    """One option: on the command line, in the environment and in the documentation."""

    name: str  # as on the command line, without the dashes
    read: Callable[[str], Any]
    help: str
    default: Any = None  # not for a policy's options: the policy has its own
    shown_default: str = ""  # where the default itself says too little
    backends: tuple[Backend, ...] = BACKENDS

    @property
    def dest(self) -> str:
        """Name of the value: a policy's field where there is one."""
        return self.name.replace("-", "_")

    @property
    def flag(self) -> str:
        """As typed: --drain-timeout."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """As exported: POOLDRAIN_DRAIN_TIMEOUT."""
        return PREFIX + self.dest.upper()

    @property
    def is_switch(self) -> bool:
        """Whether it is --name and --no-name instead of a value."""
        return self.read is boolean

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        return METAVARS[self.read]

    @property
    def default_text(self) -> str:
        """The default, for people."""
        default = POLICY_DEFAULTS.get(self.dest, self.default)
        if self.shown_default or default is None:
            return self.shown_default or "none"
        if isinstance(default, bool):
            return "on" if default else "off"
        return f"{default:g}" if isinstance(default, float) else str(default)


@dataclass(frozen=True, slots=True)
class Told:
    """One option's value, for people."""

    option: Option
    origin: str | None  # None: its default
    text: str


# Of the command line alone: they ask for something else than a service.
WISHES = {
    "check-config": "check the options, import the application, and serve nothing",
    "print-config": "print every option with where it comes from, and serve nothing",
}


OPTIONS: dict[str, tuple[Option, ...]] = {
    "Serving": (
        Option(
            "server",
            sync_server,
            "server of the threaded backend",
            servers_of("sync")[0].name,
            backends=("sync",),
        ),
        Option(
            "bind",
            addresses,
            "address to serve on; an IPv6 address in brackets; with port 0 the system picks one and the log tells; or "
            "the path of a Unix socket; several, separated by commas or each with its --bind",
            (("127.0.0.1", 8000),),
            "127.0.0.1:8000",
        ),
        Option(
            "certfile", existing_file, "certificate to speak TLS with, in PEM (not waitress)", shown_default="no TLS"
        ),
        Option("keyfile", existing_file, "its key, in PEM", shown_default="in the certificate's file"),
        Option("socket-mode", octal, "permissions of the Unix socket, as chmod takes them", 0o666, "666"),
        Option(
            "app",
            parse_app,
            "your application, as without --app: MODULE, MODULE:ATTRIBUTE or MODULE:FACTORY(...)",
            shown_default="the demo",
        ),
        Option("factory", boolean, "it is a factory, although its signature does not say so", False),
        Option("app-dir", directory, "where your application is looked for", shown_default="the current directory"),
        Option("chdir", directory, "change to this directory first", shown_default="the current directory"),
        Option(
            "config",
            existing_file,
            "a TOML file of options, by the names they have here",
            shown_default="`tool.pooldrain` in pyproject.toml",
        ),
        Option("reload", boolean, "for development: drain, and start anew, when a file changes", False),
        Option(
            "loop", loop, "event loop; auto is uvloop (an extra) where it is installed", "auto", backends=("async",)
        ),
        Option("workers", positive, "processes to serve from, each with a pool of its own", 1),
        Option("threads", positive, "requests served at once by one worker", 40, backends=("sync",)),
        Option(
            "max-requests",
            positive_or_off,
            "requests after which a worker is replaced, against memory that leaks; it goes when its successor is ready",
            shown_default="off",
        ),
        Option("max-requests-jitter", not_negative, "up to so many more, at random, so that workers differ", 0),
        Option(
            "preload",
            boolean,
            "make the application once, in the master: workers start faster and share its memory, and SIGHUP does not "
            "load its code anew",
            False,
        ),
    ),
    "Process": (
        Option(
            "init",
            init,
            "be a container's init: reap orphans, in a small process of its own; auto: as process 1",
            "auto",
        ),
        Option("pid", output_file, "write the process's number there; removed at its exit", shown_default="none"),
        Option("user", user, "user to become once it listens", shown_default="who starts it"),
        Option("group", group, "the same for the group", shown_default="the user's"),
        Option("umask", octal, "permissions that files it makes do not have", shown_default="as it is"),
    ),
    "HTTP": (
        Option("limit-request-head", whole, "bytes of a request's head; a longer one is answered 431, or 414"),
        Option(
            "limit-request-body", bytes_or_off, "bytes of a request's body; a longer one is answered 413", None, "off"
        ),
        Option("keep-alive", seconds, "time for which a connection is kept without a request"),
        Option(
            "trusted-proxies",
            TrustedProxies.parse,
            "addresses and networks (unix: who comes over a Unix socket) whose X-Forwarded-For, -Proto, -Host and "
            "-Prefix are believed",
            shown_default="off",
        ),
        Option("root-path", root_path, "path under which a proxy shows your application", shown_default="none"),
    ),
    "Probes": (
        Option("probes", probes, "who answers them: pooldrain, your application while it is ready, nobody", "own"),
        Option("livez-path", probe_path, "where it is asked whether the process lives", "/livez"),
        Option("readyz-path", probe_path, "where it is asked whether to send requests", "/readyz"),
    ),
    "Admin": (
        Option(
            "admin",
            address_or_off,
            "address to look inside on: a page, /status, /metrics, probes; other than this machine's own with a token",
            ("127.0.0.1", 0),
            "off; 127.0.0.1:0 for the demo",
        ),
        Option("admin-token", token, "what its clients have to know, better said in the environment"),
    ),
    "Database and pool": (
        Option(
            "database-url",
            DatabaseUrl.parse,
            "postgresql://user:password@host:5432/name or sqlite:///file.db; DATABASE_URL is honoured too",
            shown_default="an embedded PostgreSQL",
        ),
        Option("pool-size", whole, "connections kept open"),
        Option("max-overflow", whole, "connections opened beyond the pool size when all are in use"),
        Option("pool-timeout", seconds, "how long a request waits for a connection"),
        Option("pool-recycle", seconds, "age at which a connection is replaced"),
        Option("pre-ping", boolean, "test a connection when it is checked out"),
        Option(
            "pre-ping-idle",
            seconds,
            "time since its last use within which its socket is looked at, and its server not asked; 0 always asks",
        ),
        Option("min-idle", whole, "connections opened at start", shown_default="the pool size"),
        Option("connect-timeout", seconds, "how long opening a connection may take"),
        Option("tcp-timeout", seconds_or_off, "silence after which both ends give a connection up"),
        Option(
            "pooler",
            pooler,
            "whether a connection pooler (PgBouncer) is in between; auto finds out at the first connection",
        ),
    ),
    "Leaks": (
        Option("leak-threshold", whole, "checked-out connections from which /pool-status says connection_leak"),
        Option("leak-age", seconds_or_off, "age at which a checkout is reported as overdue", shown_default="off"),
        Option("fail-on-leak", boolean, "exit with 5 when connections leaked"),
    ),
    "Shutdown": (
        Option(
            "announce-period",
            seconds,
            "time in which /readyz already says 503 and all else is served, each answer the last on its connection",
        ),
        Option("drain-timeout", seconds, "time for the requests in flight to finish"),
        Option("streams", streams, "what becomes of event streams at the drain's start"),
        Option("cancel-timeout", seconds, "time for the cancelled ones to unwind"),
        Option("teardown-timeout", seconds, "time for the application's own end, with the pool open to it"),
        Option("dispose-timeout", seconds, "time to close the pool"),
        Option("linger", seconds, "time for the last bytes to leave"),
        Option(
            "grace-period",
            seconds,
            "what the outside allows in all; steps that do not fit it are refused",
            shown_default="the sum of the steps",
        ),
    ),
    "Output": (
        Option("report", output_file, "write the shutdown report there, as JSON"),
        Option("transcript", output_file, "write every event there, as JSON lines"),
        Option("access-log", access_form, "a line for each request, on stdout", "off"),
        Option("log-format", log_format, "form of the log on stderr", "console"),
        Option("log-level", log_level, "least level that is logged", "info"),
        Option(
            "log-config",
            existing_file,
            "a file that says what becomes of log records instead: JSON of logging.config.dictConfig, or INI",
            shown_default="stderr",
        ),
    ),
}


def service_name(backend: Backend) -> str:
    """Name of the command, in messages and in what the database server shows."""
    return f"pooldrain-{backend}"


def options_table() -> str:
    """The options as a Markdown table, for the README."""
    lines = ["| option | environment variable | default | meaning |", "|---|---|---|---|"]
    for heading, options in OPTIONS.items():
        lines.append(f"| **{heading}** | | | |")
        for option in options:
            meaning = option.help
            if isinstance(option.read, OneOf):
                meaning += ": " + ", ".join(f"`{choice}`" for choice in option.read.choices)
            if option.read in (seconds, seconds_or_off):
                meaning += ", in seconds"
            if option.backends != BACKENDS:
                meaning += "".join(f" (`{service_name(backend)}` only)" for backend in option.backends)
            flags = f"`{option.flag}`, `--no-{option.name}`" if option.is_switch else f"`{option.flag}`"
            lines.append(f"| {flags} | `{option.variable}` | {option.default_text} | {meaning} |")
    return "\n".join(lines) + "\n"
