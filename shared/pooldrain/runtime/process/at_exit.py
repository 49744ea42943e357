"""The application's `atexit` functions: run when it ends, with the pool still open, and not when the process does.

Where nobody runs them (the start failed, a third signal), they run at the exit, as ever. Those of the standard library
and our own are none of the application's.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

# Packages whose functions at the exit export what has happened until then.
EXPORTERS = {"opentelemetry"}


class AtExit:
    """What an application registers with `atexit` from `collect` on."""

    def __init__(self) -> None:
        self._functions: list[tuple[Callable[..., object], partial[object]]] = []
        self._last: list[tuple[Callable[..., object], partial[object]]] = []
        self._register = atexit.register
        self._unregister = atexit.unregister

    def collect(self) -> None:
        """Keep from `atexit` what is registered from now on, until `take` is called or the process exits."""
        self._register(self._run)
        _replace(self._keep, self._drop)

    def take(self) -> list[Callable[[], object]]:
        """The functions, in the order of the calls to come; what is registered later runs at the exit."""
        _replace(self._register, self._drop)
        functions = [call for _, call in reversed(self._functions)]
        self._functions.clear()
        return functions

    def take_last(self) -> list[Callable[[], object]]:
        """Those of an exporter, in the order of the calls to come: it is to export how the shutdown went, too."""
        functions = [call for _, call in reversed(self._last)]
        self._last.clear()
        return functions

    def _keep(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        if _package_of(function) in EXPORTERS:
            self._last.append((function, partial(function, *args, **kwargs)))
        elif _is_applications(function):
            self._functions.append((function, partial(function, *args, **kwargs)))
        else:
            self._register(function, *args, **kwargs)
        return function

    def _drop(self, function: Callable[..., Any]) -> None:
        for kept in (self._functions, self._last):
            kept[:] = [each for each in kept if each[0] != function]
        self._unregister(function)

    def _run(self) -> None:
        for function in [*self.take(), *self.take_last()]:
            self._register(function)  # the last one first, as it was registered


def _replace(register: Callable[..., Any], unregister: Callable[..., Any]) -> None:
    """Have applications register with us: by the module's names, which is how everybody reaches them."""
    setattr(atexit, "register", register)  # noqa: B010 - type checkers know that this is not meant to be done
    setattr(atexit, "unregister", unregister)  # noqa: B010 - as above


def _package_of(function: Callable[..., object]) -> str:
    module = getattr(getattr(function, "func", function), "__module__", None) or ""  # of a partial
    return module.partition(".")[0]


def _is_applications(function: Callable[..., object]) -> bool:
    return _package_of(function) not in {*sys.stdlib_module_names, "pooldrain", "pooldrain_sync", "pooldrain_async"}
