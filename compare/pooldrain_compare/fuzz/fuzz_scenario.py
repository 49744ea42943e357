"""What a fuzzed scenario is made of: policies, and a script of what happens in which order. JSON both ways."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pooldrain.policy import LeakPolicy, PoolPolicy, ShutdownPolicy

# What a request may do, one after the other; each is a method of both applications.
OPERATIONS = {
    "query": "a quick statement",
    "hold": "a statement that runs until it is released; it fails if it is cancelled",
    "stubborn": "the same; a failure is swallowed, and the request goes on",
    "stuck": "the same; it does not hear that it is cancelled",
    "wait": "waits outside the database, and cannot be stopped, as a thread cannot",
    "write": "inserts a row, runs a statement until it is released, commits",
    "second": "as hold, on the second engine (on the first, if there is only one)",
    "keep": "leaks a connection, which may be returned later",
    "collect": "leaks a connection to the garbage collector",
    "background": "leaves something behind that holds a connection until it is released",
    "fail": "raises while it holds a connection",
    "crash": "raises what no application catches",
    "invalidate": "throws its connection away",
    "after": "answers, and then runs a statement until it is released; comes last",
    "stream": "answers in two halves with a statement between them that runs until it is released; comes last",
}

# What may happen, and what its argument means; a choice is taken modulo what there is to choose from.
ACTIONS = {
    "start": "a request comes; its operations",
    "release": "something that waits goes on; which",
    "signal": "a signal comes; its name",
    "advance": "time passes; seconds",
    "reach": "time passes until the shutdown has come to a phase, or past it; the phase",
    "leave": "a client leaves; which",
    "return": "a connection that was leaked comes back; which",
    "refuse": "the database refuses connections from now on, or not; yes or no",
    "slow": "opening a connection, and testing one, waits to be released from now on, or not; yes or no",
    "kill": "the database ends the connections that are idle; nothing",
    "closing": "closing a connection goes well, raises or hangs from now on; which",
    "probe": "somebody asks for /readyz and /pool-status; nothing",
}
# What a function of the application's end may do.
ENDINGS = ("query", "hold", "write", "fail")
SERVER_STEPS = ("drain", "cancel", "stop")
CLOSING = ("well", "raises", "hangs")
DRIVERS = ("psycopg", "sqlite")


@dataclass(frozen=True, slots=True)
class Action:
    """One line of the script."""

    name: str
    argument: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FuzzScenario:
    """A whole scenario."""

    pool: PoolPolicy = field(default_factory=PoolPolicy)
    leaks: LeakPolicy = field(default_factory=LeakPolicy)
    shutdown: ShutdownPolicy = field(default_factory=ShutdownPolicy)
    driver: str = "psycopg"  # how the drivers can be cancelled and ended
    engines: int = 1
    failing: tuple[str, ...] = ()  # steps of the server that raise
    ending: tuple[str, ...] = ()  # operations of the application's end
    script: tuple[Action, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what is left at its default is left out."""
        default = asdict(FuzzScenario())
        given = asdict(self)
        kept: dict[str, Any] = {}
        for name in ("pool", "leaks", "shutdown"):
            changed = {key: value for key, value in given[name].items() if value != default[name][key]}
            if changed:
                kept[name] = changed
        kept |= {
            name: given[name] for name in ("driver", "engines", "failing", "ending") if given[name] != default[name]
        }
        return {**kept, "script": [[action.name, action.argument] for action in self.script]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FuzzScenario:
        """The scenario that `as_dict` wrote. Raises what a wrong name or value makes of it."""
        return cls(
            pool=PoolPolicy(**data.get("pool", {})),
            leaks=LeakPolicy(**data.get("leaks", {})),
            shutdown=ShutdownPolicy(**data.get("shutdown", {})),
            driver=data.get("driver", "psycopg"),
            engines=data.get("engines", 1),
            failing=tuple(data.get("failing", ())),
            ending=tuple(data.get("ending", ())),
            script=tuple(_action(*line) for line in data["script"]),
        )


def _action(name: str, argument: Any = None) -> Action:
    if name not in ACTIONS:
        raise ValueError(f"there is no action {name!r}")
    if name == "start":
        argument = tuple(argument)
        if unknown := set(argument) - set(OPERATIONS):
            raise ValueError(f"there are no operations {sorted(unknown)}")
    return Action(name, argument)
