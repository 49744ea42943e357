"""A parser for commands: a complaint in one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pooldrain.errors import ConfigurationError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage, by raising ConfigurationError."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise ConfigurationError(f"{message}; see {self.prog} --help")
