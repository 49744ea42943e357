"""What the user asks for: one table of options, from which come parser, environment variables and documentation.

The command line wins over `POOLDRAIN_…` variables, those over PORT and WEB_CONCURRENCY, those over the configuration
file, that over the defaults. An empty variable counts as unset.
Every mistake is a ConfigurationError of one line that names the option or the variable it came from.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pooldrain import __version__
from pooldrain.access import AccessForm
from pooldrain.errors import ConfigurationError
from pooldrain.policy import HttpPolicy, LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain.printable import printable
from pooldrain.probes import AnsweredBy
from pooldrain.runtime.listener import bind_text
from pooldrain.runtime.options.application import AppName, parse_app, takes_runner
from pooldrain.runtime.options.config_file import read_config
from pooldrain.runtime.options.readers import Loop, Secret, addresses, is_own, output_file
from pooldrain.runtime.options.table import (
    OPTIONS,
    POLICY_DEFAULTS,
    PREFIX,
    WISHES,
    Option,
    Told,
    service_name,
)
from pooldrain.runtime.output.logging import LogFormat, LogLevel
from pooldrain.runtime.process.init import InitMode
from pooldrain.servers import SERVERS, Backend, servers_of
from pooldrain.sqla.database_url import DatabaseUrl

Policy = TypeVar("Policy", HttpPolicy, PoolPolicy, LeakPolicy, ShutdownPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a backend needs to run, validated."""

    backend: Backend
    service: str  # "pooldrain-sync" or "pooldrain-async"
    server: str  # a key of SERVERS
    # Hosts without the brackets of an IPv6 address, a path is that of a Unix socket; port 0: the kernel picks one.
    binds: tuple[tuple[str, int], ...]
    socket_mode: int  # of a Unix socket
    certfile: Path | None  # None: no TLS
    keyfile: Path | None  # None: the key is in that file
    app: AppName | None  # None: the demo
    factory: bool  # it is one, whatever its signature says
    app_dir: Path | None  # where it is looked for; None: in the current directory
    reload: bool
    loop: Loop
    workers: int
    threads: int  # 1 for the async backend
    max_requests: int | None  # None: as many as come
    max_requests_jitter: int
    preload: bool
    database_url: DatabaseUrl | None  # None: the embedded PostgreSQL, if one is needed
    probes: AnsweredBy
    livez_path: str
    readyz_path: str
    http: HttpPolicy
    pool: PoolPolicy
    leaks: LeakPolicy
    shutdown: ShutdownPolicy
    admin: tuple[str, int] | None
    admin_token: Secret | None
    init: InitMode
    pid: Path | None  # a file for the process's number
    user: str | None  # to become, once it listens
    group: str | None
    umask: int | None
    report: Path | None
    transcript: Path | None
    access_log: AccessForm
    log_format: LogFormat
    log_level: LogLevel
    log_config: Path | None
    told: tuple[Told, ...]  # every option, for people
    check_config: bool  # and serve nothing
    print_config: bool  # the same

    @property
    def given(self) -> list[tuple[str, str]]:
        """The options that somebody has set, by `dest`, and where: a flag, a variable, a key of a file."""
        return [(told.option.dest, told.origin) for told in self.told if told.origin is not None]

    def describe(self) -> str:
        """Every option with its value, and where that comes from: what `--print-config` prints."""
        lines = [(f"{told.option.name} = {told.text}", told.origin or "default") for told in self.told]
        width = max(len(line) for line, _ in lines)
        return "".join(f"{line:<{width}}  # {printable(origin)}\n" for line, origin in lines)

    @property
    def bind(self) -> str:
        """The addresses, as they are typed."""
        return ",".join(bind_text(host, port) for host, port in self.binds)

    def check_files(self) -> None:
        """See again whether what is to be written can be: the process may be another user's by now.

        Raises ConfigurationError.
        """
        for name, path in (("--report", self.report), ("--transcript", self.transcript)):
            try:
                _ = path and output_file(str(path))
            except ValueError as error:
                raise ConfigurationError(f"{name} {path}: {error}, by the user of --user") from None

    @property
    def needs_master(self) -> bool:
        """Whether somebody has to start, and to replace, the processes that serve."""
        return self.workers > 1 or self.max_requests is not None or self.preload


def load_settings(backend: Backend, argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Read the command line, the environment and the configuration file, after changing to where `--chdir` says.

    Raises ConfigurationError when anything is wrong. `--help` and `--version` print and raise SystemExit(0), as
    argparse does.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}  # of each value: the option or the variable, for messages
    told: list[Told] = []
    texts, wishes = _from_command_line(backend, argv)
    texts = _from_environment(backend, environ) | texts
    early: dict[str, Any] = {}  # read before the others, which depend on them
    for option in _options_of(backend):
        if option.dest in ("chdir", "config") and option.dest in texts:
            early[option.dest] = _read(option, *texts[option.dest])
            if option.dest == "chdir":
                os.chdir(early["chdir"])
    texts = _from_file(backend, early.get("config")) | texts
    if _is_applications(texts, "database_url"):
        del texts["database_url"]
    for option in _options_of(backend):
        origin, text = texts.get(option.dest, (option.flag, None))
        origins[option.dest] = origin
        if text is not None:
            values[option.dest] = early.get(option.dest) or _read(option, origin, text)
        elif option.dest not in POLICY_DEFAULTS:
            values[option.dest] = option.default
        told.append(Told(option, None if text is None else origin, _shown(option, values.get(option.dest), text)))

    server: str = values.get("server", servers_of(backend)[0].name)
    if SERVERS[server].several is None:
        _check_one_process(server, values, origins)
    _check_tls(server, values, origins)
    if values["app"] is not None and "admin" not in texts:
        values["admin"] = None
    _check_admin(values, origins)
    if values["livez_path"] == values["readyz_path"]:
        raise ConfigurationError(
            f"{origins['livez_path']} and {origins['readyz_path']} name the same path; give each its own"
        )
    if values["log_config"] is not None and (idle := [d for d in ("log_format", "log_level") if d in texts]):
        raise ConfigurationError(f"{origins[idle[0]]} has no effect beside {origins['log_config']}; drop one of them")
    if values["report"] is not None and values["report"] == values["transcript"]:
        raise ConfigurationError(
            f"{origins['report']} and {origins['transcript']} name the same file; give each its own"
        )
    return Settings(
        backend=backend,
        service=service_name(backend),
        server=server,
        binds=values["bind"],
        socket_mode=values["socket_mode"],
        certfile=values["certfile"],
        keyfile=values["keyfile"],
        app=values["app"],
        factory=values["factory"],
        app_dir=values["app_dir"],
        reload=values["reload"],
        loop=values.get("loop", "auto"),
        workers=values["workers"],
        threads=values.get("threads", 1),
        max_requests=values["max_requests"],
        max_requests_jitter=values["max_requests_jitter"],
        preload=values["preload"],
        database_url=values["database_url"],
        http=_policy(HttpPolicy, values, origins),
        pool=_policy(PoolPolicy, values, origins),
        leaks=_policy(LeakPolicy, values, origins),
        shutdown=_policy(ShutdownPolicy, values, origins),
        probes=values["probes"],
        livez_path=values["livez_path"],
        readyz_path=values["readyz_path"],
        admin=values["admin"],
        admin_token=values["admin_token"],
        init=values["init"],
        pid=values["pid"],
        user=values["user"],
        group=values["group"],
        umask=values["umask"],
        report=values["report"],
        transcript=values["transcript"],
        access_log=values["access_log"],
        log_format=values["log_format"],
        log_level=values["log_level"],
        log_config=values["log_config"],
        told=tuple(told),
        check_config="check-config" in wishes,
        print_config="print-config" in wishes,
    )


def _is_applications(texts: Mapping[str, tuple[str, str]], dest: str) -> bool:
    """Whether a value is only what DATABASE_URL says, which is for an application that makes its engines itself."""
    origin, _ = texts.get(dest, ("", ""))
    if origin != "DATABASE_URL" or "app" not in texts:
        return False
    try:
        name = parse_app(texts["app"][1])
    except ValueError:
        return False  # told in its place
    directory = Path(texts["app_dir"][1]) if "app_dir" in texts else None
    return not takes_runner(name, "factory" in texts, directory)


def _shown(option: Option, value: Any, text: str | None) -> str:
    """A value as `--print-config` shows it."""
    if text is None:
        return option.default_text
    return value.masked if isinstance(value, DatabaseUrl | Secret) else text


def build_parser(backend: Backend) -> argparse.ArgumentParser:
    """The command line's parser; it takes every value as text, `load_settings` reads it."""
    parser = _Parser(
        prog=service_name(backend),
        description="Serve an application, the demo if none is named, and drain its requests and its connection "
        "pool on SIGTERM or Ctrl+C.",
        epilog="Each option is an environment variable too, --drain-timeout is POOLDRAIN_DRAIN_TIMEOUT; the command "
        "line wins. Exit codes: 0 drained and disposed, 1 could not start, 2 bad configuration, 3 requests were cut, "
        "4 dispose failed or timed out, 5 connections leaked (--fail-on-leak), 128+N a third signal N.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "APP", nargs="?", help="your application: MODULE, MODULE:ATTRIBUTE or MODULE:FACTORY(...); none: the demo"
    )
    parser.add_argument("--version", action="version", version=f"{service_name(backend)} {__version__}")
    for wish, described in WISHES.items():
        parser.add_argument(f"--{wish}", action="store_true", help=described)
    for group, options in OPTIONS.items():
        section = parser.add_argument_group(group)
        for option in options:
            if backend not in option.backends:
                continue
            described = f"{option.help} (default: {option.default_text})"
            if option.is_switch:
                section.add_argument(option.flag, action=argparse.BooleanOptionalAction, help=described)
            else:
                action = "append" if option.read is addresses else "store"
                section.add_argument(option.flag, metavar=option.metavar, help=described, action=action)
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


Texts = dict[str, tuple[str, str]]  # by `dest`: where it is said, and what


def _from_command_line(backend: Backend, argv: Sequence[str]) -> tuple[Texts, set[str]]:
    """The options of the command line, and what it asks for beside them."""
    given, unknown = build_parser(backend).parse_known_args(list(argv))
    if unknown:
        raise ConfigurationError(_unknown_argument(backend, unknown[0]))
    found: Texts = {}
    for option in _options_of(backend):
        if option.dest in given:
            value = getattr(given, option.dest)
            if isinstance(value, list):
                value = ",".join(value)
            found[option.dest] = (f"--no-{option.name}" if value is False else option.flag, str(value))
    if "APP" in given:
        if "app" in found:
            raise ConfigurationError("the application is named twice, with and without --app; name it once")
        found["app"] = ("APP", given.APP)
    return found, {wish for wish in WISHES if wish.replace("-", "_") in given}


def _from_file(backend: Backend, path: Path | None) -> Texts:
    every = {option.name: option for options in OPTIONS.values() for option in options}
    del every["config"], every["chdir"]  # read before it
    found: Texts = {}
    for name, (origin, text) in read_config(path, Path.cwd()).items():
        option = every.get(name)
        if option is None:
            raise ConfigurationError(f"{origin}: there is no such option{_did_you_mean(name, every)}")
        if backend in option.backends:
            found[option.dest] = (origin, text)
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


def _from_environment(backend: Backend, environ: Mapping[str, str]) -> Texts:
    every = {option.variable: option for options in OPTIONS.values() for option in options}
    found: Texts = {}
    if environ.get("DATABASE_URL"):
        found["database_url"] = ("DATABASE_URL", environ["DATABASE_URL"])
    if workers := environ.get("WEB_CONCURRENCY"):
        found["workers"] = ("WEB_CONCURRENCY", workers)
    if port := environ.get("PORT"):
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ConfigurationError(f"PORT must be a port between 0 and 65535, not {port!r}")
        found["bind"] = ("PORT", f"0.0.0.0:{port}")
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


def _check_tls(server: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Refuse a key without its certificate, and TLS on a server that has none."""
    if values["certfile"] is None:
        if values["keyfile"] is not None:
            raise ConfigurationError(f"{origins['keyfile']} needs the certificate of that key, in --certfile")
    elif not SERVERS[server].speaks_tls:
        able = next(spec.name for spec in servers_of(SERVERS[server].backend) if spec.speaks_tls)
        raise ConfigurationError(
            f"{origins['certfile']}: {server} speaks no TLS; use --server {able}, or a proxy in front of it"
        )


def _check_admin(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Refuse to show a service to others without a token, and a token that nobody is asked for."""
    if values["admin"] is None:
        if values["admin_token"] is not None:
            raise ConfigurationError(f"{origins['admin_token']} needs the address to look inside on, in --admin")
    elif values["admin_token"] is None and not is_own(values["admin"][0]):
        raise ConfigurationError(
            f"{origins['admin']}: others than this machine could look inside; give --admin-token, or 127.0.0.1"
        )


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
