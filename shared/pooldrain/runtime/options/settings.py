"""What the user asks for: one table of options, from which come parser, environment variables and documentation.

The command line wins over `POOLDRAIN_…` variables, those win over the defaults. An empty variable counts as unset.
Every mistake is a ConfigurationError of one line that names the option or the variable it came from.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from pooldrain import __version__
from pooldrain.errors import ConfigurationError
from pooldrain.policy import LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain.runtime.output.logging import LogFormat, LogLevel
from pooldrain.servers import SERVERS, Backend, servers_of
from pooldrain.sqla.database_url import DatabaseUrl

BACKENDS: tuple[Backend, ...] = get_args(Backend)
Policy = TypeVar("Policy", PoolPolicy, LeakPolicy, ShutdownPolicy)

PREFIX = "POOLDRAIN_"
LONGEST = 1_000_000.0  # seconds; a timeout beyond some 24 days overflows what the system's calls take
_POLICY_DEFAULTS = {
    field.name: field.default for policy in (PoolPolicy, LeakPolicy, ShutdownPolicy) for field in fields(policy)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a backend needs to run, validated."""

    backend: Backend
    service: str  # "pooldrain-sync" or "pooldrain-async"
    server: str  # a key of SERVERS
    host: str  # without the brackets of an IPv6 address
    port: int  # 0: the kernel picks one
    app: str | None  # MODULE:FACTORY; None: the demo
    workers: int
    threads: int  # 1 for the async backend
    max_requests: int | None  # None: as many as come
    max_requests_jitter: int
    preload: bool
    database_url: DatabaseUrl | None  # None: the embedded PostgreSQL
    pool: PoolPolicy
    leaks: LeakPolicy
    shutdown: ShutdownPolicy
    report: Path | None
    transcript: Path | None
    log_format: LogFormat
    log_level: LogLevel

    @property
    def bind(self) -> str:
        """HOST:PORT, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def needs_master(self) -> bool:
        """Whether somebody has to start, and to replace, the processes that serve."""
        return self.workers > 1 or self.max_requests is not None or self.preload


# Readers: text to value, ValueError "must be ..." when they cannot.


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("must be a whole number") from None


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise ValueError("must be 1 or more")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError("must be a number of seconds") from None
    if seconds > LONGEST:
        raise ValueError(f"must be {LONGEST:.0f} seconds or less")
    return seconds


def _not_negative(text: str) -> int:
    number = _whole(text)
    if number < 0:
        raise ValueError("must be 0 or more")
    return number


def _positive_or_off(text: str) -> int | None:
    return None if text.strip().lower() == "off" else _positive(text)


def _seconds_or_off(text: str) -> float | None:
    return None if text.strip().lower() == "off" else _seconds(text)


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be true or false")


@dataclass(frozen=True, slots=True)
class _OneOf:
    choices: tuple[str, ...]

    def __call__(self, text: str) -> str:
        word = text.strip().lower()
        if word not in self.choices:
            raise ValueError(f"must be {', '.join(self.choices[:-1])} or {self.choices[-1]}")
        return word


def _factory(text: str) -> str:
    name = text.strip()
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise ValueError("must be MODULE:FACTORY, as in shop.web:create_app")
    return name


_sync_server = _OneOf(tuple(spec.name for spec in servers_of("sync")))
_log_format = _OneOf(get_args(LogFormat))
_log_level = _OneOf(get_args(LogLevel))


def _address(text: str) -> tuple[str, int]:
    """HOST:PORT or [IPV6]:PORT; no host is refused, since that means loopback to some and every network to others."""
    host, colon, port = text.strip().rpartition(":")
    if not (colon and port.isascii() and port.isdigit()):
        raise ValueError("must be HOST:PORT")
    if not 0 <= int(port) <= 65535:
        raise ValueError("must have a port between 0 and 65535")
    if not host:
        raise ValueError(
            f"must name a host, 127.0.0.1:{port} for this machine only or 0.0.0.0:{port} for every network"
        )
    if bracketed := re.fullmatch(r"\[(.*)\]", host):
        host = bracketed[1]
        if not _is_ip(host, ipaddress.IPv6Address):
            raise ValueError("must have an IPv6 address within the brackets")
    elif _is_ip(host, ipaddress.IPv6Address):
        raise ValueError("must have the IPv6 address in brackets, as [::1]:8000")
    elif not re.fullmatch(r"[A-Za-z0-9_.-]+", host) or (
        re.fullmatch(r"[0-9.]+", host) and not _is_ip(host, ipaddress.IPv4Address)
    ):
        raise ValueError("must be HOST:PORT with a host name or an IP address")
    return host, int(port)


def _is_ip(text: str, kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _output_file(text: str) -> Path:
    """Make sure that the file can be written at the end, without changing what is in it now."""
    try:
        path = Path(text).expanduser().absolute()  # absolute: a server may change its directory
        if path.is_file() or path.is_dir():
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
        elif path.exists():  # a device or a pipe: opening it could wait for a reader
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            target = path.resolve()  # of a link whose file does not exist yet
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            target.unlink()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, a ~ without a home
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"must name a file that can be written ({why.lower()})") from None
    return path


# What stands for a value in the help.
_METAVARS: dict[Callable[[str], Any], str] = {
    **{choice: "|".join(choice.choices) for choice in (_sync_server, _log_format, _log_level)},
    _address: "HOST:PORT",
    _factory: "MODULE:FACTORY",
    _whole: "N",
    _positive: "N",
    _not_negative: "N",
    _positive_or_off: "N|off",
    _seconds: "SECONDS",
    _seconds_or_off: "SECONDS|off",
    _boolean: "true|false",
    _output_file: "FILE",
    DatabaseUrl.parse: "URL",
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
        return self.read is _boolean

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        return _METAVARS[self.read]

    @property
    def default_text(self) -> str:
        """The default, for people."""
        default = _POLICY_DEFAULTS.get(self.dest, self.default)
        if self.shown_default or default is None:
            return self.shown_default or "none"
        if isinstance(default, bool):
            return "on" if default else "off"
        return f"{default:g}" if isinstance(default, float) else str(default)


OPTIONS: dict[str, tuple[Option, ...]] = {
    "Serving": (
        Option(
            "server", _sync_server, "server of the threaded backend", servers_of("sync")[0].name, backends=("sync",)
        ),
        Option(
            "bind",
            _address,
            "address to serve on; an IPv6 address in brackets; with port 0 the system picks one and the log tells",
            ("127.0.0.1", 8000),
            "127.0.0.1:8000",
        ),
        Option(
            "app",
            _factory,
            "your application, MODULE:FACTORY; the factory is called with the runner and returns the application",
            shown_default="the demo",
        ),
        Option("workers", _positive, "processes to serve from, each with a pool of its own", 1),
        Option("threads", _positive, "requests served at once by one worker", 40, backends=("sync",)),
        Option(
            "max-requests",
            _positive_or_off,
            "requests after which a worker is replaced, against memory that leaks; it goes when its successor is ready",
            shown_default="off",
        ),
        Option("max-requests-jitter", _not_negative, "up to so many more, at random, so that workers differ", 0),
        Option(
            "preload",
            _boolean,
            "make the application once, in the master: workers start faster and share its memory, and SIGHUP does not "
            "load its code anew",
            False,
        ),
    ),
    "Database and pool": (
        Option(
            "database-url",
            DatabaseUrl.parse,
            "postgresql://user:password@host:5432/name or sqlite:///file.db; DATABASE_URL is honoured too",
            shown_default="an embedded PostgreSQL",
        ),
        Option("pool-size", _whole, "connections kept open"),
        Option("max-overflow", _whole, "connections opened beyond the pool size when all are in use"),
        Option("pool-timeout", _seconds, "how long a request waits for a connection"),
        Option("pool-recycle", _seconds, "age at which a connection is replaced"),
        Option("pre-ping", _boolean, "test a connection when it is checked out"),
        Option("min-idle", _whole, "connections opened at start", shown_default="the pool size"),
        Option("connect-timeout", _seconds, "how long opening a connection may take"),
        Option("tcp-timeout", _seconds_or_off, "silence after which both ends give a connection up (PgBouncer: off)"),
    ),
    "Leaks": (
        Option("leak-threshold", _whole, "checked-out connections from which /pool-status says connection_leak"),
        Option("leak-age", _seconds_or_off, "age at which a checkout is reported as overdue", shown_default="off"),
        Option("fail-on-leak", _boolean, "exit with 5 when connections leaked"),
    ),
    "Shutdown": (
        Option("announce-period", _seconds, "time in which /readyz already says 503 and all else is served"),
        Option("drain-timeout", _seconds, "time for the requests in flight to finish"),
        Option("cancel-timeout", _seconds, "time for the cancelled ones to unwind"),
        Option("dispose-timeout", _seconds, "time to close the pool"),
        Option("linger", _seconds, "time for the last bytes to leave"),
        Option(
            "grace-period",
            _seconds,
            "what the outside allows in all; steps that do not fit it are refused",
            shown_default="the sum of the steps",
        ),
    ),
    "Output": (
        Option("report", _output_file, "write the shutdown report there, as JSON"),
        Option("transcript", _output_file, "write every event there, as JSON lines"),
        Option("log-format", _log_format, "form of the log on stderr", "console"),
        Option("log-level", _log_level, "least level that is logged", "info"),
    ),
}


def load_settings(backend: Backend, argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Read the command line and the environment; raise ConfigurationError when anything is wrong.

    `--help` and `--version` print and raise SystemExit(0), as argparse does.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}  # of each value: the option or the variable, for messages
    texts = _from_environment(backend, environ) | _from_command_line(backend, argv)
    for option in _options_of(backend):
        origin, text = texts.get(option.dest, (option.flag, None))
        origins[option.dest] = origin
        if text is not None:
            values[option.dest] = _read(option, origin, text)
        elif option.dest not in _POLICY_DEFAULTS:
            values[option.dest] = option.default

    server: str = values.get("server", servers_of(backend)[0].name)
    if SERVERS[server].several is None:
        _check_one_process(server, values, origins)
    if values["report"] is not None and values["report"] == values["transcript"]:
        raise ConfigurationError(
            f"{origins['report']} and {origins['transcript']} name the same file; give each its own"
        )
    host, port = values["bind"]
    return Settings(
        backend=backend,
        service=service_name(backend),
        server=server,
        host=host,
        port=port,
        app=values["app"],
        workers=values["workers"],
        threads=values.get("threads", 1),
        max_requests=values["max_requests"],
        max_requests_jitter=values["max_requests_jitter"],
        preload=values["preload"],
        database_url=values["database_url"],
        pool=_policy(PoolPolicy, values, origins),
        leaks=_policy(LeakPolicy, values, origins),
        shutdown=_policy(ShutdownPolicy, values, origins),
        report=values["report"],
        transcript=values["transcript"],
        log_format=values["log_format"],
        log_level=values["log_level"],
    )


def service_name(backend: Backend) -> str:
    """Name of the command, in messages and in what the database server shows."""
    return f"pooldrain-{backend}"


def options_table() -> str:
    """The options as a Markdown table, for the README."""
    lines = ["| option | environment variable | default | meaning |", "|---|---|---|---|"]
    for group, options in OPTIONS.items():
        lines.append(f"| **{group}** | | | |")
        for option in options:
            meaning = option.help
            if isinstance(option.read, _OneOf):
                meaning += ": " + ", ".join(f"`{choice}`" for choice in option.read.choices)
            if option.read in (_seconds, _seconds_or_off):
                meaning += ", in seconds"
            if option.backends != BACKENDS:
                meaning += "".join(f" (`{service_name(backend)}` only)" for backend in option.backends)
            flags = f"`{option.flag}`, `--no-{option.name}`" if option.is_switch else f"`{option.flag}`"
            lines.append(f"| {flags} | `{option.variable}` | {option.default_text} | {meaning} |")
    return "\n".join(lines) + "\n"


def build_parser(backend: Backend) -> argparse.ArgumentParser:
    """The command line's parser; it takes every value as text, `load_settings` reads it."""
    parser = _Parser(
        prog=service_name(backend),
        description="Serve an application, the demo if --app names none, and drain its requests and its connection "
        "pool on SIGTERM or Ctrl+C.",
        epilog="Each option is an environment variable too, --drain-timeout is POOLDRAIN_DRAIN_TIMEOUT; the command "
        "line wins. Exit codes: 0 drained and disposed, 1 could not start, 2 bad configuration, 3 requests were cut, "
        "4 dispose failed or timed out, 5 connections leaked (--fail-on-leak), 128+N a third signal N.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action="version", version=f"{service_name(backend)} {__version__}")
    for group, options in OPTIONS.items():
        section = parser.add_argument_group(group)
        for option in options:
            if backend not in option.backends:
                continue
            described = f"{option.help} (default: {option.default_text})"
            if option.is_switch:
                section.add_argument(option.flag, action=argparse.BooleanOptionalAction, help=described)
            else:
                section.add_argument(option.flag, metavar=option.metavar, help=described)
    return parser


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing a usage block."""

    def error(self, message: str) -> NoReturn:
        flag, _, rest = message.removeprefix("argument ").partition(": ")
        if rest.startswith("expected"):
            raise ConfigurationError(f"{flag} needs a value; see {self.prog} --help")
        if rest.startswith("ignored explicit argument"):  # the argument itself may be a secret
            raise ConfigurationError(f"{flag} takes no value; see {self.prog} --help")
        raise ConfigurationError(f"{message}; see {self.prog} --help")


def _options_of(backend: Backend) -> Iterator[Option]:
    return (option for options in OPTIONS.values() for option in options if backend in option.backends)


def _from_command_line(backend: Backend, argv: Sequence[str]) -> dict[str, tuple[str, str]]:
    given, unknown = build_parser(backend).parse_known_args(list(argv))
    if unknown:
        raise ConfigurationError(_unknown_argument(backend, unknown[0]))
    found: dict[str, tuple[str, str]] = {}
    for option in _options_of(backend):
        if option.dest in given:
            value = getattr(given, option.dest)
            found[option.dest] = (f"--no-{option.name}" if value is False else option.flag, str(value))
    return found


def _unknown_argument(backend: Backend, argument: str) -> str:
    service = service_name(backend)
    name = argument.partition("=")[0]  # what follows may be a secret
    if not name.startswith("-"):
        return f"unexpected argument (a database URL goes after --database-url); see {service} --help"
    other: Backend = "async" if backend == "sync" else "sync"
    if any(option.flag == name for option in _options_of(other)):
        return f"{name} is an option of {service_name(other)} only"
    hint = _did_you_mean(name, (option.flag for option in _options_of(backend)))
    return f"unknown option {name}{hint}; see {service} --help"


def _from_environment(backend: Backend, environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    every = {option.variable: option for options in OPTIONS.values() for option in options}
    found: dict[str, tuple[str, str]] = {}
    if environ.get("DATABASE_URL"):
        found["database_url"] = ("DATABASE_URL", environ["DATABASE_URL"])
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or not text:
            continue
        option = every.get(variable)
        if option is None:
            # Only what looks like a slip: orchestrators add variables of their own, such as POOLDRAIN_SERVICE_HOST.
            slip = variable.removeprefix(PREFIX)
            if hint := _did_you_mean(slip, (name.removeprefix(PREFIX) for name in every), PREFIX):
                raise ConfigurationError(f"unknown environment variable {variable}{hint}")
        elif backend in option.backends:
            found[option.dest] = (variable, text)
    return found


def _did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.85)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


def _check_one_process(server: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Refuse what a server cannot that has no master."""
    others = next(spec.name for spec in servers_of(SERVERS[server].backend) if spec.several is not None)
    use = f"use --server {others}"
    if values["workers"] > 1:
        raise ConfigurationError(f"{origins['workers']} {values['workers']}: {server} serves one process; {use}")
    if values["max_requests"] is not None:
        told = f"{origins['max_requests']} {values['max_requests']}"
        raise ConfigurationError(f"{told}: nobody would replace {server}'s one process; {use}")
    if values["preload"]:
        raise ConfigurationError(f"{origins['preload']}: {server} serves one process, and forks none; {use}")


def _read(option: Option, origin: str, text: str) -> Any:
    try:
        return option.read(text)
    except ConfigurationError as error:  # a ValueError too; it says everything itself and hides secrets
        raise ConfigurationError(f"{origin}: {error}") from None
    except ValueError as error:
        raise ConfigurationError(f"{origin} {error}, not {text!r}") from None


def _policy(policy: type[Policy], values: Mapping[str, Any], origins: Mapping[str, str]) -> Policy:
    given = {field.name: values[field.name] for field in fields(policy) if field.name in values}
    try:
        return policy(**given)
    except ConfigurationError as error:
        # The policy speaks of its fields, the user of options and variables.
        names = re.compile(rf"\b({'|'.join(origins)})\b")
        raise ConfigurationError(names.sub(lambda match: origins[match[1]], str(error))) from None
