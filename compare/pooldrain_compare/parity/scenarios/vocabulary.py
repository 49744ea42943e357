"""What scenarios are written with: steps, expectations, and the scenario itself.

A scenario is a policy, a list of steps, and expectations. Steps wait for events, never for time to pass. The
expectations say what is right; whether all servers do the same, `comparison` finds out for everything that was
seen, expected or not.

Latches: see `app.routes`. `/query?latch=a` is held up until `Open("a")`.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from pooldrain.phases import Phase

POSTGRESQL, SQLITE = "postgresql", "sqlite"
BOTH = (POSTGRESQL, SQLITE)

# --- steps ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection that stays open, by name."""

    name: str
    worker: int = 0


@dataclass(frozen=True, slots=True)
class Write:
    """Send bytes as they are on a connection opened before. What is answered there is read at the end, or by Take."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Answering:
    """Wait until an answer begins to come on such a connection, and read nothing of it."""

    name: str


@dataclass(frozen=True, slots=True)
class Take:
    """Read, at last, what is answered on such a connection, to its end."""

    name: str


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a request, and go on. `on`: a connection opened before; else a new one, to this worker.

    Its name is its X-Request-ID, so that transcripts and reports speak of it.
    """

    name: str
    target: str
    method: str = "GET"
    body: bytes = b""
    on: str | None = None
    worker: int = 0


@dataclass(frozen=True, slots=True)
class Ask(Start):
    """Begin a request, and wait for its answer."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """Wait until these requests are in flight."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AtQuery:
    """Wait until so many statements wait at a query latch."""

    latch: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class AtLatch:
    """Wait until so many have come to an application latch."""

    latch: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Open:
    """Open latches; what waits there goes on."""

    latches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """Wait for the answers of these requests (or for the end of their connections)."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FirstBytes:
    """Wait for the first bytes of a body."""

    name: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection of a request that is being served, or a connection opened before."""

    name: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a signal to the service (to its master, if it has one), or to one worker."""

    number: signal.Signals = signal.SIGTERM
    worker: int | None = None

    @property
    def ends_all(self) -> bool:
        """Whether the whole service is to end."""
        return self.worker is None and self.number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop the workers, as a machine that is out of breath would: what comes now queues in the kernel."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Let them go on."""


@dataclass(frozen=True, slots=True)
class FewDescriptors:
    """From now on the workers have only so many more file descriptors than they use."""

    room: int


@dataclass(frozen=True, slots=True)
class Crowd:
    """Open so many connections that say nothing."""

    size: int


@dataclass(frozen=True, slots=True)
class CrowdLeaves:
    """Close them."""


@dataclass(frozen=True, slots=True)
class OthersEnded:
    """Wait until every worker but the first, which has requests in flight, has ended."""


@dataclass(frozen=True, slots=True)
class WorkerEnded:
    """Wait until a worker has ended."""

    worker: int


@dataclass(frozen=True, slots=True)
class Entered:
    """Wait until every worker has entered a phase, or so many."""

    phase: Phase
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Draining:
    """Wait until every worker refuses requests."""


@dataclass(frozen=True, slots=True)
class Event:
    """Wait for events of the transcript, by name and, if given, leak rule or request."""

    name: str
    count: int = 1
    rule: str | None = None
    request: str | None = None


@dataclass(frozen=True, slots=True)
class Sessions:
    """Wait until the database server shows so many sessions of the first worker; the idle one has its `min_idle`."""

    total: int


@dataclass(frozen=True, slots=True)
class EndSessions:
    """End every session of the service from the database server's side."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Let something happen to the database, by its name in `faults`. The service has one of its own for that."""

    name: str


@dataclass(frozen=True, slots=True)
class Look:
    """Take down, by name, what the admin listener shows at this moment."""

    name: str


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Undo every fault; what is still in force at the end is taken back when the service has ended."""


Step = (
    Connect | Write | Answering | Take | Start | Ask | Admitted | AtQuery | AtLatch | Open | Answered
    | FirstBytes | Disconnect | Send | Pause | Resume | FewDescriptors | Crowd | CrowdLeaves | OthersEnded
    | WorkerEnded | Entered | Draining | Event | Sessions | EndSessions | Fault | Look | TakeBack
)  # fmt: skip

SIGTERM, SIGINT = Send(), Send(signal.SIGINT)


# --- expectations ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Band:
    """Seconds between which a duration has to be."""

    least: float
    most: float

    def __contains__(self, seconds: float) -> bool:
        return self.least <= seconds <= self.most

    def __str__(self) -> str:
        return f"{self.least:g} to {self.most:g} s"


# What needs no time may take this long: two processes start on the same two cores beside the one that is timed.
AT_ONCE = Band(0.0, 1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """What has to come of it, on every server. Counts are sums over the workers."""

    exit_code: int = 0
    outcome: str | None = "drained"  # of the first worker; None: it leaves no report
    hurried: bool = False
    answers: Mapping[str, int | None] = field(default_factory=dict)  # status by request; None: no whole answer
    received: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # statuses by connection that was written on
    last: tuple[str, ...] | None = None  # requests whose answers are the last on their connections; None: not asked
    refused: int = 0
    cut: int = 0
    cut_work: tuple[str, ...] = ()  # holders of what was at work outside requests
    leaks: Mapping[str, int] = field(default_factory=dict)  # by rule, those that are not 0
    outstanding: (
        tuple[str, ...] | None
    ) = ()  # holders of what was not returned, and reclaimed; None: not the same everywhere
    abandoned: int = 0
    orders: tuple[str, ...] = ()  # ids in the table afterwards
    after_last_act: Band = AT_ONCE  # from the last thing that was done to the service to its end
    phases: Mapping[Phase, Band] = field(default_factory=dict)  # DRAINING is the suite's doing; others: AT_ONCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario. `shows`: in one line, what it is about."""

    name: str
    shows: str
    steps: tuple[Step, ...]
    expect: Expect = Expect()
    policy: tuple[str, ...] = ()  # options, in place of POLICY's
    app: str = "create_app"  # factory of the scenario applications
    databases: tuple[str, ...] = (POSTGRESQL,)
    workers: tuple[int, ...] = (1, 2)
    starts_listening: bool = True  # wait for the service to listen before the first step
    steady_sessions: bool = True  # none is replaced before the signal: the server keeps one for a moment longer
    second_pool: int = 0  # connections that a second engine may have

    @property
    def has_faults(self) -> bool:
        """Whether its database will be mistreated."""
        return any(isinstance(step, Fault) for step in self.steps)

    @property
    def min_idle(self) -> int:
        """Sessions of a worker that nothing was asked of."""
        return int(self._values["--min-idle"])

    @property
    def most_sessions(self) -> int:
        """Sessions that a worker may have at one time."""
        return int(self._values["--pool-size"]) + int(self._values["--max-overflow"]) + self.second_pool

    @property
    def options(self) -> tuple[str, ...]:
        """Its policy as options of a command line."""
        return (*(word for pair in self._values.items() for word in pair), *filter(_is_flag, self.policy))

    @property
    def _values(self) -> dict[str, str]:
        pairs = [word for word in self.policy if not _is_flag(word)]
        return POLICY | dict(zip(pairs[::2], pairs[1::2], strict=True))


def _is_flag(word: str) -> bool:
    return word.startswith(("--no-", "--fail-"))


# Small pools start fast; timeouts are long where they must not matter.
POLICY: dict[str, str] = {
    "--pool-size": "3",
    "--max-overflow": "0",
    "--min-idle": "1",
    "--pool-timeout": "20",
    "--drain-timeout": "20",
    "--cancel-timeout": "5",
    "--teardown-timeout": "5",
    "--dispose-timeout": "5",
}

# A drain that times out soon, and a patience with what is cut that is long enough never to matter.
SHORT_DRAIN = ("--drain-timeout", "0.4")
SHORT_DRAIN_BAND = {Phase.DRAINING: Band(0.39, 1.4)}

CROWD = 40  # more than a server takes in one turn of its loop


def raw(method: str, target: str, identity: str, body: bytes = b"") -> bytes:
    """The bytes of a request; its body may be cut off."""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\nHost: x\r\nX-Request-ID: {identity}\r\n{length}\r\n".encode() + body


def order(identity: str) -> bytes:
    """The body of an order."""
    return json.dumps({"id": identity, "item": "notebook", "quantity": 2}).encode()
