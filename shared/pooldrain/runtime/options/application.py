"""Loads the user's application: `module:factory`, called with the runner, whose pool it is to use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from pooldrain.errors import ConfigurationError, describe_error

Runner = TypeVar("Runner")
App = TypeVar("App")


def load_factory(name: str | None) -> Any:
    """The factory that `--app` names, None for none. Raises ConfigurationError."""
    if name is None:
        return None
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")  # an application lies in the current directory, as for other servers
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigurationError(f"--app {name}: cannot import {module_name}: {describe_error(error)}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ConfigurationError(f"--app {name}: {module_name} has no function {attribute}")
    return factory


def call_factory(name: str | None, factory: Callable[[Runner], App], runner: Runner) -> App:
    """The application; `name` is what `--app` says. Raises ConfigurationError when it cannot import something."""
    try:
        return factory(runner)
    except ImportError as error:
        if name is None:
            raise
        raise ConfigurationError(f"--app {name}: cannot make the application: {describe_error(error)}") from error
