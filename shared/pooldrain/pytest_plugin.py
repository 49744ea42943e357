"""A pytest plugin: a test that leaves a connection of a SQLAlchemy pool checked out, or drops one, fails.

Off unless asked for: `pytest --fail-on-leaked-connections`, or `pooldrain_leaks = "error"` in pytest's configuration. A
test with the marker `allow_leaked_connections` is left alone. Any engine of either colour, pooldrain's or not, made at
any time: SQLAlchemy's events for the class `Pool` reach every pool, those before included.

A checkout belongs to the test during which it was made, or to the fixture of a wider scope that was being set up: that
one is judged when it is torn down.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pooldrain.stacks import StackWalker, call_sites

OPTION, SETTING, MARKER = "--fail-on-leaked-connections", "pooldrain_leaks", "allow_leaked_connections"
LONGEST_STATEMENT = 80  # characters of a statement that are shown


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option and the setting."""
    group = parser.getgroup("pooldrain")
    group.addoption(
        OPTION, action="store_true", help="fail each test that leaves a SQLAlchemy connection checked out, or drops one"
    )
    parser.addini(SETTING, "off, or error: fail each test that leaks a SQLAlchemy connection", default="off")


def pytest_configure(config: pytest.Config) -> None:
    """Watch, if that is asked for. Raises UsageError."""
    config.addinivalue_line("markers", f"{MARKER}: a test that may leave connections checked out")
    setting = config.getini(SETTING)
    if setting not in ("off", "error"):
        raise pytest.UsageError(f"{SETTING} must be off or error, not {setting!r}")
    if config.getoption(OPTION) or setting == "error":
        try:
            watch = Watch()
        except ModuleNotFoundError as error:
            raise pytest.UsageError(f"{OPTION}: {error.name} is not installed") from None
        config.pluginmanager.register(Guard(watch), "pooldrain-guard")


@dataclass(eq=False, slots=True)
class _Checkout:
    """A connection that has left its pool."""

    owner: object  # the test, or the fixture of a wider scope
    engine: str
    where: str
    thread: str
    proxy: Callable[[], object]  # what was handed out; None once it is collected
    statement: str = ""

    def told(self, how: str) -> str:
        """In words."""
        last = f", last statement: {self.statement}" if self.statement else ""
        thread = "" if self.thread == threading.main_thread().name else f", by thread {self.thread}"
        return f"{how}: {self.engine}, checked out at {self.where}{last}{thread}"


@dataclass(eq=False)
class Watch:
    """Every checkout of every pool, by who owns it."""

    owners: list[object] = field(default_factory=list)  # the innermost last
    _out: dict[int, _Checkout] = field(default_factory=dict)  # by the record's identity
    _dropped: list[_Checkout] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)  # a collection may give one back at any point

    def __post_init__(self) -> None:
        import sqlalchemy
        from sqlalchemy import event
        from sqlalchemy.engine import Engine
        from sqlalchemy.pool import Pool

        packages = [str(Path(module.__file__ or "").parent) + os.sep for module in (sqlalchemy, pytest)]
        self._walker = StackWalker((*packages, "<", contextlib.__file__, threading.__file__, __file__, *_libraries()))
        for name, listener in (("checkout", self._left), ("checkin", self._back), ("detach", self._back)):
            event.listen(Pool, name, listener)
        event.listen(Engine, "before_cursor_execute", self._executes)

    def judge(self, owner: object) -> list[str]:
        """What has leaked that belongs to `owner`, in words; it is forgotten."""
        if any(checkout.owner is owner for checkout in list(self._out.values())):
            gc.collect()  # only then, for it takes a while: a cycle may be all that holds it
        with self._lock:
            kept = {key: checkout for key, checkout in self._out.items() if checkout.owner is owner}
            for key in kept:
                del self._out[key]
            dropped = [checkout for checkout in self._dropped if checkout.owner is owner]
            self._dropped = [checkout for checkout in self._dropped if checkout.owner is not owner]
        not_returned = [checkout.told("not returned") for checkout in kept.values()]
        return not_returned + [checkout.told("dropped, and collected") for checkout in dropped]

    # --- SQLAlchemy's events ----------------------------------------------------------------------------------

    def _left(self, connection: object, record: Any, proxy: Any) -> None:
        if not self.owners:
            return
        checkout = _Checkout(
            owner=self.owners[-1],
            engine=_name_of(proxy),
            where=self._call_site(),
            thread=threading.current_thread().name,
            proxy=record.fairy_ref or weakref.ref(proxy),  # the record's is gone when it comes back
        )
        with self._lock:
            self._out[id(record)] = checkout

    def _back(self, connection: object, record: Any) -> None:
        with self._lock:
            checkout = self._out.pop(id(record), None)
            if checkout is not None and checkout.proxy() is None:  # it was the collector that gave it back
                self._dropped.append(checkout)

    def _executes(self, connection: Any, cursor: object, statement: str, *rest: object) -> None:
        record = getattr(connection.connection, "_connection_record", None)
        if (checkout := self._out.get(id(record))) is not None:
            checkout.statement = " ".join(statement.split())[:LONGEST_STATEMENT]
            if connection.engine.logging_name:  # a pool does not know it
                checkout.engine = f"{connection.engine.logging_name} ({type(connection.engine.pool).__name__})"

    def _call_site(self) -> str:
        stack = self._walker.capture(sys._getframe(2))
        if not stack and "greenlet" in sys.modules:  # asyncio: the caller is in the parent
            from greenlet import getcurrent

            parent = getcurrent().parent
            stack = self._walker.capture(None if parent is None else parent.gr_frame)
        sites = call_sites(stack)
        if not sites:
            return "an unknown place"
        site = sites[0]
        with contextlib.suppress(ValueError):
            return f"{Path(site.file).relative_to(Path.cwd())}:{site.line} in {site.function}"
        return str(site)


class Guard:
    """The hooks, while the plugin is on."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """The test begins."""
        self._watch.owners.append(item)
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """What a fixture of a wider scope checks out is its own."""
        if fixturedef.scope == "function":
            return (yield)
        self._watch.owners.append(fixturedef)
        try:
            return (yield)
        finally:
            self._watch.owners.remove(fixturedef)

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """A fixture of a wider scope is over."""
        if fixturedef.scope != "function" and (leaks := self._watch.judge(fixturedef)):
            _fail(f"the fixture {fixturedef.argname}", leaks)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """The test is over, its own fixtures included."""
        try:
            result = yield
        finally:
            if item in self._watch.owners:
                self._watch.owners.remove(item)
        leaks = self._watch.judge(item)
        if leaks and item.get_closest_marker(MARKER) is None:
            _fail("the test", leaks)
        return result


def _fail(who: str, leaks: list[str]) -> None:
    connections = "1 connection" if len(leaks) == 1 else f"{len(leaks)} connections"
    pytest.fail(f"{who} leaked {connections}:\n" + "\n".join(f"  {leak}" for leak in leaks), pytrace=False)


def _name_of(proxy: Any) -> str:
    """An engine's name, as far as its pool knows it, and the kind of pool."""
    pool = proxy._pool
    given = getattr(pool, "_orig_logging_name", None)
    name = given or getattr(getattr(pool, "_dialect", None), "name", "") or "an engine"
    return f"{name} ({type(pool).__name__})"


def _libraries() -> tuple[str, ...]:
    """Where nobody's own code is: installed packages and the standard library."""
    import sysconfig

    paths = sysconfig.get_paths()
    return tuple({f"{paths[name]}{os.sep}" for name in ("purelib", "platlib", "stdlib", "platstdlib")})
