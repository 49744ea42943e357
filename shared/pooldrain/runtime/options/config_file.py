"""The configuration file: TOML whose keys are the options' names, a file of its own or a table in pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pooldrain.errors import ConfigurationError

PYPROJECT = "pyproject.toml"
TABLE = "tool.pooldrain"


def read_config(path: Path | None, directory: Path) -> dict[str, tuple[str, str]]:
    """What a configuration file says: by key, with dashes, where it says so and its value as text.

    `path` None: the table `tool.pooldrain` of the pyproject.toml in `directory`, if it has one. Raises
    ConfigurationError.
    """
    if path is None:
        path = directory / PYPROJECT
        if not path.is_file():
            return {}
        table = _tables(_parsed(path))
        if table is None:
            return {}
        return _texts(table, f"{PYPROJECT}: {TABLE}.")
    parsed = _parsed(path)
    table = _tables(parsed) if path.name == PYPROJECT else parsed
    return _texts(table or {}, f"{path.name}: ")


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--config {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:  # of TOML, and of UTF-8
        raise ConfigurationError(f"{path.name} is not valid TOML: {error}") from None


def _tables(parsed: Mapping[str, Any]) -> Mapping[str, Any] | None:
    table: Any = parsed
    for name in TABLE.split("."):
        table = table.get(name) if isinstance(table, Mapping) else None
    if table is not None and not isinstance(table, Mapping):
        raise ConfigurationError(f"{PYPROJECT}: {TABLE} must be a table")
    return table


def _texts(table: Mapping[str, Any], where: str) -> dict[str, tuple[str, str]]:
    texts: dict[str, tuple[str, str]] = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name in texts:
            raise ConfigurationError(f"{where}{key} is given twice, with a dash and with an underscore")
        if not isinstance(value, str | int | float):
            raise ConfigurationError(f"{where}{key} must be a string, a number or a boolean")
        texts[name] = (f"{where}{key}", str(value).lower() if isinstance(value, bool) else str(value))
    return texts
