"""Socket activation: a service manager holds the listening sockets, and passes them on (sd_listen_fds(3)).

They outlive the service: whoever connects while none runs waits in their queue for the next one. So nothing is done at
the end that would last: no filter on the socket, no refusal of who is queued.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from pooldrain.errors import ConfigurationError

FIRST = 3  # the first descriptor that is passed

_MEND = "let the .socket unit have ListenStream= only"


def passed_sockets(environ: MutableMapping[str, str]) -> tuple[socket.socket, ...]:
    """The sockets that were passed to this process, if there are any. Raises ConfigurationError.

    What says so is taken out of the environment: it is not true of what the service starts.
    """
    pid, number = environ.pop("LISTEN_PID", None), environ.pop("LISTEN_FDS", None)
    environ.pop("LISTEN_FDNAMES", None)
    environ.pop("LISTEN_PIDFDID", None)
    if not number or pid != str(os.getpid()):
        return ()
    if not (number.isascii() and number.isdigit() and int(number) <= 1000):
        raise ConfigurationError(f"LISTEN_FDS must be a number of sockets, not {number!r}")
    return tuple(_taken(FIRST + index) for index in range(int(number)))


def address_of(passed: socket.socket) -> tuple[str, int]:
    """Where it listens, as an address in the settings."""
    name = passed.getsockname()
    return (name, 0) if isinstance(name, str) else name[:2]


def _taken(descriptor: int) -> socket.socket:
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigurationError(
            f"LISTEN_FDS says that descriptor {descriptor} is a socket ({(error.strerror or '').lower()}); {_MEND}"
        ) from None
    if taken.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        raise ConfigurationError(f"the socket of descriptor {descriptor} is neither TCP's nor a Unix socket; {_MEND}")
    if taken.type != socket.SOCK_STREAM or not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigurationError(f"the socket of descriptor {descriptor} does not listen for connections; {_MEND}")
    if taken.family == socket.AF_UNIX and not isinstance(taken.getsockname(), str):
        raise ConfigurationError(f"the socket of descriptor {descriptor} has no path; {_MEND}")
    taken.set_inheritable(True)  # by workers; other children do not have it (`keep_from_children`)
    return taken
