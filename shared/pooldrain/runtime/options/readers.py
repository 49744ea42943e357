"""Readers: what somebody has typed, to a value; ValueError "must be ..." when they cannot."""

from __future__ import annotations

import errno
import grp
import ipaddress
import os
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pooldrain.access import AccessForm
from pooldrain.errors import ConfigurationError
from pooldrain.policy import PoolerMode, Streams
from pooldrain.probes import AnsweredBy
from pooldrain.proxies import TrustedProxies
from pooldrain.runtime.options.application import parse_app
from pooldrain.runtime.output.logging import LogFormat, LogLevel
from pooldrain.runtime.process.init import InitMode
from pooldrain.servers import servers_of
from pooldrain.sqla.database_url import DatabaseUrl

Loop = Literal["auto", "asyncio", "uvloop"]


LONGEST = 1_000_000.0  # seconds; a timeout beyond some 24 days overflows what the system's calls take


# Characters of a token: what nobody guesses.
SHORTEST_TOKEN = 16

# Hosts that are this machine for itself; paths of Unix sockets are, too.
OWN_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Secret:
    """What is never shown."""

    value: str = field(repr=False)

    @property
    def masked(self) -> str:
        """What is shown in its place."""
        return "***"


def is_own(host: str) -> bool:
    """Whether only this machine reaches what is bound there."""
    return host.startswith(("/", "127.")) or host.lower() in OWN_HOSTS


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError("must be a whole number") from None


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    number = whole(text)
    if number < 1:
        raise ValueError("must be 1 or more")
    return number


def seconds(text: str) -> float:
    """A number of seconds."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError("must be a number of seconds") from None
    if number > LONGEST:
        raise ValueError(f"must be {LONGEST:.0f} seconds or less")
    return number


def not_negative(text: str) -> int:
    """A whole number, 0 or more."""
    number = whole(text)
    if number < 0:
        raise ValueError("must be 0 or more")
    return number


def positive_or_off(text: str) -> int | None:
    """The same as `positive`, or off: None."""
    return None if text.strip().lower() == "off" else positive(text)


def bytes_or_off(text: str) -> int | None:
    """A number of bytes, or off: None."""
    return None if text.strip().lower() == "off" else not_negative(text)


def seconds_or_off(text: str) -> float | None:
    """A number of seconds, or off: None."""
    return None if text.strip().lower() == "off" else seconds(text)


def boolean(text: str) -> bool:
    """Yes or no."""
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be true or false")


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of these words."""

    choices: tuple[str, ...]

    def __call__(self, text: str) -> str:
        """The word."""
        word = text.strip().lower()
        if word not in self.choices:
            raise ValueError(f"must be {', '.join(self.choices[:-1])} or {self.choices[-1]}")
        return word


def directory(text: str) -> Path:
    """A directory that is there, absolute."""
    path = Path(text).expanduser()
    if not path.is_dir():
        raise ValueError("must be a directory")
    return path.absolute()


def existing_file(text: str) -> Path:
    """A file that is there, absolute."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise ValueError("must be a file")
    return path.absolute()


def probe_path(text: str) -> str:
    """A path of a URL, without a query."""
    path = text.strip()
    if not re.fullmatch(r"/[!-~]*", path) or re.search(r"[?#%]", path):
        raise ValueError("must be a path that begins with / and has no query, as /livez")
    return path


def root_path(text: str) -> str:
    """A path of a URL without a slash at its end; nothing, or a single slash, is none."""
    path = text.strip().rstrip("/")
    if path and (not re.fullmatch(r"/[!-~]+", path) or re.search(r"[?#%]|//", path)):
        raise ValueError("must be a path that begins with / and has no query, as /shop")
    return path


probes = OneOf(get_args(AnsweredBy))


sync_server = OneOf(tuple(spec.name for spec in servers_of("sync")))


loop = OneOf(get_args(Loop))


streams = OneOf(get_args(Streams))


pooler = OneOf(get_args(PoolerMode))


init = OneOf(get_args(InitMode))


access_form = OneOf(get_args(AccessForm))


log_format = OneOf(get_args(LogFormat))


log_level = OneOf(get_args(LogLevel))


# Bytes of a Unix socket's path (unix(7): 108 with the zero at its end).
LONGEST_PATH = 107


def octal(text: str) -> int:
    """The permissions of a file, as chmod takes them."""
    if not re.fullmatch(r"0?[0-7]{3}", text.strip()):
        raise ValueError("must be three octal digits, as 660")
    return int(text, 8)


def user(text: str) -> str:
    """A user of this system."""
    try:
        return pwd.getpwnam(text).pw_name
    except KeyError:
        raise ValueError("must be a user of this system") from None


def group(text: str) -> str:
    """A group of this system."""
    try:
        return grp.getgrnam(text).gr_name
    except KeyError:
        raise ValueError("must be a group of this system") from None


def address(text: str) -> tuple[str, int]:
    """HOST:PORT, [IPV6]:PORT or unix:PATH; the path, which begins with a slash, stands where a host would.

    No host is refused, since that means loopback to some and every network to others.
    """
    if text.strip().startswith("unix:"):
        path = Path(text.strip().removeprefix("unix:")).expanduser().absolute()  # a server may change its directory
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError("must name a socket in a directory that is there, as unix:/run/shop.sock")
        if len(os.fsencode(path)) > LONGEST_PATH:
            raise ValueError(f"must have a path of {LONGEST_PATH} bytes at most")
        return str(path), 0
    host, colon, port = text.strip().rpartition(":")
    if not (colon and port.isascii() and port.isdigit()):
        raise ValueError("must be HOST:PORT or unix:PATH")
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


def address_or_off(text: str) -> tuple[str, int] | None:
    """One of them, or none."""
    return None if text.strip() == "off" else address(text)


def token(text: str) -> Secret:
    """A secret of this service: something that nobody guesses, and that fits into a header."""
    if len(text) < SHORTEST_TOKEN or not (text.isascii() and text.isprintable()) or " " in text:
        raise ConfigurationError(f"must be a secret of at least {SHORTEST_TOKEN} ASCII characters, without spaces")
    return Secret(text)


def addresses(text: str) -> tuple[tuple[str, int], ...]:
    """One or several of them, separated by commas."""
    return tuple(address(each) for each in text.split(","))


def _is_ip(text: str, kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def output_file(text: str) -> Path:
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
METAVARS: dict[Callable[[str], Any], str] = {
    **{
        choice: "|".join(choice.choices)
        for choice in (sync_server, log_format, log_level, probes, loop, streams, access_form, pooler, init)
    },
    addresses: "HOST:PORT|unix:PATH",
    address_or_off: "HOST:PORT|unix:PATH|off",
    token: "TOKEN",
    octal: "MODE",
    user: "USER",
    group: "GROUP",
    parse_app: "APP",
    directory: "DIR",
    existing_file: "FILE",
    probe_path: "PATH",
    whole: "N",
    positive: "N",
    not_negative: "N",
    positive_or_off: "N|off",
    bytes_or_off: "BYTES|off",
    TrustedProxies.parse: "ADDRESSES|off",
    root_path: "PATH",
    seconds: "SECONDS",
    seconds_or_off: "SECONDS|off",
    boolean: "true|false",
    output_file: "FILE",
    DatabaseUrl.parse: "URL",
}
