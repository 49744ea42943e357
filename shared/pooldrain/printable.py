"""Text from outside, made fit for a log: paths, headers, statements, the messages of exceptions.

Whatever is not printable is written as an escape: line breaks, which would forge lines of the log; control characters,
which would rule the terminal; marks that turn the direction of writing, and halves of surrogate pairs.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterator
from typing import Any

# Lines of tracebacks that Python prints between exceptions.
_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"

_SPECIAL = re.compile(r"[^ -~\u00a1-\u00ac\u00ae-\u02ff]")  # a superset of what is not printable


def printable(text: str) -> str:
    """`text` with everything escaped that is not printable (`str.isprintable`), line breaks included."""
    return text if text.isprintable() else _SPECIAL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def json_line(record: dict[str, Any]) -> str:
    """`record` as one line of JSON, in which everything is escaped that is not printable; what JSON lacks as text."""
    line = json.dumps(record, ensure_ascii=False, default=str)
    return line if line.isprintable() else _SPECIAL.sub(_escaped_in_json, line)


def _escaped_in_json(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def traceback_lines(error: BaseException) -> Iterator[str]:
    """The traceback of `error`, as Python prints it, with each exception's own text in one line."""
    yield from _traceback(error, set())


def _traceback(error: BaseException, told: set[int]) -> Iterator[str]:
    told.add(id(error))
    cause, context = error.__cause__, error.__context__
    if cause is not None and id(cause) not in told:
        yield from (*_traceback(cause, told), "", _CAUSE, "")
    elif context is not None and cause is None and not error.__suppress_context__ and id(context) not in told:
        yield from (*_traceback(context, told), "", _CONTEXT, "")
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):"
        for frame in traceback.format_tb(error.__traceback__):
            yield from map(printable, frame.rstrip("\n").split("\n"))
    yield _headline(error)
    yield from (printable(str(note)) for note in getattr(error, "__notes__", ()))
    if isinstance(error, BaseExceptionGroup):
        for number, inner in enumerate(error.exceptions, 1):
            yield f"  +---------------- {number} ----------------"
            yield from (f"  | {line}" for line in _traceback(inner, told))


def _headline(error: BaseException) -> str:
    kind = type(error)
    home = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    name = f"{home}{kind.__qualname__}"
    try:
        text = printable(str(error))
    except Exception:  # noqa: BLE001 - an exception may not even be able to say what it is
        text = "<exception str() failed>"
    return f"{name}: {text}" if text else name
