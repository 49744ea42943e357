"""Call sites that cost a microsecond or two: walked as (code, instruction) pairs, formatted only when shown.

`traceback.extract_stack` opens files and builds strings, 27 to 55 µs a call; the walk here only follows
frame pointers. Frames of SQLAlchemy and of pooldrain itself are skipped: the user's line is the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import CodeType, FrameType

# How many of the user's frames to keep: the line that checked out, and who called it.
DEPTH = 4

RawStack = tuple[tuple[CodeType, int], ...]


@dataclass(frozen=True, slots=True)
class CallSite:
    """One line of the user's code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


class StackWalker:
    """Walks frames, skipping files below `skip` (path prefixes)."""

    def __init__(self, skip: tuple[str, ...], depth: int = DEPTH) -> None:
        self._skip = skip
        self._depth = depth
        self._skipped: dict[str, bool] = {}  # by file name: a prefix test per frame would cost more than the walk

    def capture(self, frame: FrameType | None) -> RawStack:
        """The user's innermost frames, from `frame` outwards; empty when there is none."""
        skipped = self._skipped
        while frame is not None:
            name = frame.f_code.co_filename
            skip = skipped.get(name)
            if skip is None:
                skip = skipped[name] = name.startswith(self._skip)
            if not skip:
                break
            frame = frame.f_back
        stack = []
        left = self._depth
        while frame is not None and left:
            stack.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
            left -= 1
        return tuple(stack)


def call_sites(stack: RawStack) -> tuple[CallSite, ...]:
    """The stack in words, innermost first."""
    return tuple(CallSite(code.co_filename, _line(code, lasti), code.co_qualname) for code, lasti in stack)


def raised_at(error: BaseException) -> str:
    """Where an exception was raised: file:line in function, "" when it never was."""
    traceback = error.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return str(CallSite(code.co_filename, traceback.tb_lineno, code.co_qualname))


def _line(code: CodeType, lasti: int) -> int:
    """The source line of an instruction (PEP 626: `co_lines` is the supported way to ask)."""
    for start, end, line in code.co_lines():
        if start <= lasti < end and line is not None:
            return line
    return code.co_firstlineno
