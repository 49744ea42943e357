"""Leaving the process: exit codes for errors, and the exit without the interpreter's slow teardown."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, NoReturn

from pooldrain.errors import ConfigurationError, StartupError
from pooldrain.exit_codes import INTERRUPTED, ExitCode
from pooldrain.printable import printable
from pooldrain.runtime.output.logging import logs_json
from pooldrain.runtime.process.missing import explain_missing

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

# Seconds for which the exit waits for what is buffered to be taken.
FLUSH_LIMIT = 0.1

log = logging.getLogger(__name__)


def fast_exit(code: int) -> NoReturn:
    """End the process now: run the `atexit` callbacks, flush logs, stdout and stderr, and leave with `code`.

    Module teardown and thread joins, 60-135 ms of them, are left out; so are non-daemon threads.
    """
    sys.unraisablehook = _log_unraisable  # where `atexit` sends a callback's error
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    with contextlib.suppress(RuntimeError):  # no thread can be started: what is buffered is lost
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(FLUSH_LIMIT)
    os._exit(code)


def _flush() -> None:
    """Hand over what is buffered; in a thread, since nobody may be there to take it."""
    with contextlib.suppress(Exception):
        logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, broken or closed
            stream.flush()


def run_cli(name: str, main: Callable[[], int]) -> NoReturn:
    """Run a command's `main` and leave with the code it returns; an expected error is one line, not a traceback."""
    with told_in_one_line(name):
        fast_exit(main())
    raise AssertionError("unreachable: told_in_one_line leaves the process")


@contextlib.contextmanager
def told_in_one_line(name: str) -> Generator[None, None, None]:
    """Let an error of this block end the process, told in one line if it is an expected one."""
    try:
        yield
    except ConfigurationError as error:
        _complain(name, str(error))
        fast_exit(ExitCode.BAD_CONFIGURATION)
    except StartupError as error:
        _show_traceback(error)
        _complain(name, str(error))
        fast_exit(ExitCode.NOT_STARTED)
    except KeyboardInterrupt:  # before the service's own handlers stand
        fast_exit(INTERRUPTED)
    except SystemExit as stop:  # --help, --version
        if isinstance(stop.code, str):
            _complain(name, stop.code)
        fast_exit(stop.code if isinstance(stop.code, int) else 0 if stop.code is None else ExitCode.NOT_STARTED)
    except Exception as error:
        missing = explain_missing(error)
        if missing is None:
            log.exception("%s: unexpected error", name)
        else:
            _complain(name, missing)
        fast_exit(ExitCode.NOT_STARTED)


def _complain(name: str, message: str) -> None:
    line = printable(" ".join(message.split()))  # one line, whatever a library put into its error
    if logs_json():
        log.error("%s", line, extra={"event": {"event": "error"}})
        return
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(f"{name}: error: {line}\n")


def _show_traceback(error: StartupError) -> None:
    """Show where the user's own module has failed."""
    lines: list[str] = getattr(error, "user_traceback", [])
    if lines and not logs_json():
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stderr.write("\n".join(lines) + "\n")


def _log_unraisable(error: UnraisableHookArgs) -> None:
    frames = [frame for frame in traceback.extract_tb(error.exc_traceback) if frame.filename != __file__]
    where = f" in {frames[-1].name} ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    log.error("error in an atexit callback: %r%s", error.exc_value, where)
