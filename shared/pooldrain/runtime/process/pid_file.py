"""A file with the process's number, for who signals it."""

from __future__ import annotations

import atexit
import logging
import os
from contextlib import suppress
from pathlib import Path

from pooldrain.errors import StartupError

logger = logging.getLogger("pooldrain")


def write_pid_file(path: Path) -> None:
    """Write this process's number; its exit removes the file. Raises StartupError.

    One that a process has left which is gone is replaced; one of a process that lives is not.
    """
    try:
        left = path.read_text("utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError):
        left = "?"
    if left.strip() and not left.strip().isdigit():
        raise StartupError(f"--pid {path} is a file of something else; name another one")
    if left.strip():
        pid = int(left)
        if pid != os.getpid() and _lives(pid):
            raise StartupError(f"--pid {path} is that of process {pid}, which runs; stop it, or name another file")
        logger.info("%s was left by process %d, which is gone", path, pid)
    try:
        path.write_text(f"{os.getpid()}\n", "utf-8")
    except OSError as error:
        raise StartupError(f"--pid {path} cannot be written: {error.strerror}") from error
    atexit.register(_remove, path, os.getpid())


def _lives(pid: int) -> bool:
    """Whether a process has this number that may be one of ours: numbers are given again, after a restart above all."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    with suppress(OSError):
        return b"pooldrain" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return True


def _remove(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # not a worker, which has been forked with this function
        with suppress(OSError, ValueError):
            if int(path.read_text("utf-8")) == pid:
                path.unlink()
