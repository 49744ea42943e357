"""The `pooldrain-sync` command."""

from __future__ import annotations

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command and leave the process with its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # dies silently until the command has taken the signals over
    from pooldrain.runtime.command import run_backend

    run_backend("sync")
