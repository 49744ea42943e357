"""Versions of servers that are known to lose what is in flight: refused at the start, whatever has let them in."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from pooldrain.errors import StartupError

# The lowest version of each that was seen to lose nothing, and what the ones before it do.
_LEAST = {
    "gunicorn": ((26, 2), "answers requests in flight 503, or resets them, at a shutdown"),
    "waitress": ((3,), "disconnects requests in flight at a shutdown"),
    "uvicorn": ((0, 30), "was not tried"),
}


def require_version(package: str) -> None:
    """Raise StartupError if the installed version of a server is one that loses requests. Not installed: no matter."""
    least, does = _LEAST[package]
    try:
        installed = version(package)
    except PackageNotFoundError:
        return  # its import says so, and how to mend it
    if _numbers(installed) < least:
        wanted = ".".join(map(str, least))
        raise StartupError(f"{package} {installed} {does}; pip install '{package}>={wanted}'")


def _numbers(text: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()
