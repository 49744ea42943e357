"""What a service manager is told (sd_notify(3)), and when the process has last shown that it lives.

Ready is who really serves: gunicorn's own message comes before its workers are there, and also if they never are, and
the next host is restarted on the strength of it. The variables are taken out of the environment: what the service
starts is not to speak for it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress

from pooldrain.errors import ConfigurationError
from pooldrain.phases import Phase

# What `systemctl status` shows of each phase.
_STATUS = {
    Phase.ANNOUNCING: "announcing the end: serving, not ready",
    Phase.DRAINING: "draining: waiting for the requests in flight",
    Phase.CANCELLING: "cancelling what has not finished",
    Phase.TEARDOWN: "ending the application",
    Phase.RECLAIMING: "reclaiming connections that were not returned",
    Phase.DISPOSING: "closing the pool",
    Phase.STOPPING: "closing the last connections",
}

_MICROSECONDS = 1_000_000


class ServiceManager:
    """The service manager's ear; without an address everything is said to nobody.

    `watchdog`: seconds within which it wants a sign of life, if it does.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self._socket: socket.socket | None = None
        self._pause = None if watchdog is None else watchdog / 4
        self._beaten_at = 0.0  # monotonic seconds
        if address is not None:
            self._socket = _connected(address)

    def ready(self, where: str) -> None:
        """Requests are accepted."""
        self._tell("READY=1", f"STATUS=serving on {where}", f"MAINPID={os.getpid()}")

    def ending(self, grace: float) -> None:
        """The end begins, and takes so many seconds at most."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round(grace * _MICROSECONDS)}")

    def entered(self, phase: Phase) -> None:
        """The service has moved on to a phase of its end."""
        if phase in _STATUS:
            self._tell(f"STATUS={_STATUS[phase]}")

    def following(self, grace: float) -> Callable[[Phase], None]:
        """What is to be told of each phase of the only process, whose end takes `grace` seconds at most."""

        def follow(phase: Phase) -> None:
            if phase is Phase.ANNOUNCING:
                self.ending(grace)
            self.entered(phase)

        return follow

    def beat(self) -> None:
        """The loop that serves, or that minds those who do, goes round. To be called every second."""
        if self._pause is None or (now := time.monotonic()) < self._beaten_at + self._pause:
            return
        self._beaten_at = now
        self._tell("WATCHDOG=1")

    def _tell(self, *assignments: str) -> None:
        if self._socket is not None:
            with suppress(OSError):  # it has gone, or does not listen: that is no reason to fail
                self._socket.send("\n".join(assignments).encode())


def service_manager(environ: MutableMapping[str, str]) -> ServiceManager:
    """What the environment says of a service manager, taken out of it. Raises ConfigurationError."""
    address = environ.pop("NOTIFY_SOCKET", None)
    watchdog, pid = environ.pop("WATCHDOG_USEC", None), environ.pop("WATCHDOG_PID", None)
    if not address:
        return ServiceManager()
    seconds = None
    if watchdog and pid in (None, "", str(os.getpid())):
        if not (watchdog.isascii() and watchdog.isdigit() and int(watchdog)):
            raise ConfigurationError(f"WATCHDOG_USEC must be a number of microseconds, not {watchdog!r}")
        seconds = int(watchdog) / _MICROSECONDS
    return ServiceManager(address, seconds)


def _connected(address: str) -> socket.socket:
    if address[0] not in "/@":
        raise ConfigurationError(f"NOTIFY_SOCKET must be the path of a socket, not {address!r}; unset it")
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    connected.setblocking(False)
    try:
        connected.connect("\0" + address[1:] if address[0] == "@" else address)
    except OSError as error:
        connected.close()
        raise ConfigurationError(
            f"NOTIFY_SOCKET {address}: nobody listens there ({(error.strerror or str(error)).lower()}); unset it, "
            "unless a service manager is to be told"
        ) from None
    return connected
