"""Loads the user's application: `module:factory`, called with the runner, whose pool it is to use."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from pooldrain.errors import ConfigurationError, describe_error


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
