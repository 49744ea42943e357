"""The access log on stdout, where it mixes with no other log."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from datetime import datetime

from pooldrain.access import Access, AccessForm, AccessSink
from pooldrain.printable import json_line
from pooldrain.runtime.output.logging import descriptor_of
from pooldrain.runtime.output.writer import Output


def access_log(form: AccessForm) -> AccessSink | None:
    """What writes a line in this form; None if there is to be none. A line that nobody takes is lost, as in the log."""
    descriptor = descriptor_of(sys.stdout)
    if form == "off" or descriptor is None:
        return None
    shown: Callable[[Access, datetime], str] = (
        Access.common if form == "common" else lambda access, moment: json_line(access.as_dict(moment))
    )

    def lost(lines: int) -> bytes:
        told = f"{lines} lines of this log are lost: nobody read them"
        return ((json_line({"message": told}) if form == "json" else f"# {told}") + "\n").encode()

    output = Output(descriptor, lost)

    def write(access: Access) -> None:
        with contextlib.suppress(OSError):
            output.write((shown(access, datetime.now().astimezone()) + "\n").encode("utf-8", "backslashreplace"))

    return write
