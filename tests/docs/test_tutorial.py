"""The tutorial: its files are written, its commands are typed into a shell, and print what it shows."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.pages import DOCS

TUTORIAL = (DOCS / "tutorial.md").read_text("utf-8")
TIMEOUT = 120.0  # seconds for all of it on a busy machine

# What `make setup` has done already.
INSTALLS = ("python3 -m venv ", "pip install ")
# What may be typed again, and for how many seconds.
LOOKS = ("grep ", "COLUMNS=200 pooldrain top ")
PATIENCE = 30.0
MARK = "--- a command of the tutorial"


@dataclass(slots=True)
class Command:
    """A line that is typed, and the lines that it prints; `…` stands for anything."""

    typed: str
    printed: list[str] = field(default_factory=list)

    @property
    def looks(self) -> bool:
        """Whether it only looks at what a service tells, who tells it after its answer: we type faster than that."""
        return self.typed.startswith(LOOKS)

    def shown_by(self, said: str) -> bool:
        """Whether the tutorial shows what it `said`; of a line that it shows nothing of, anything will do."""
        lines = [".*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) for line in self.printed]
        return not lines or re.fullmatch("\n".join(lines), said.strip("\n"), re.DOTALL) is not None


def commands() -> list[Command]:
    found: list[Command] = []
    for block in re.findall(r"```console\n(.*?)```", TUTORIAL, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Command(line[2:]))
            else:
                found[-1].printed.append(line)
    return [command for command in found if not command.typed.startswith(INSTALLS)]


class Reader:
    """One who types what the tutorial shows; whatever happens, nothing of it is left behind."""

    def __init__(self, folder: Path) -> None:
        self.shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # all of it has one process group
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
        self._too_long = threading.Timer(TIMEOUT, self.kill)
        self._too_long.start()

    def types(self, command: Command) -> str:
        """What it printed."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.write(f"{command.typed}\necho '{MARK}'\n")
        self.shell.stdin.flush()
        printed: list[str] = []
        for line in self.shell.stdout:
            if line == f"{MARK}\n":
                return "".join(printed)
            printed.append(line)
        raise AssertionError(f"{command.typed} has not ended within {TIMEOUT} s; it printed:\n{''.join(printed)}")

    def kill(self) -> None:
        subprocess.run(["pkill", "-KILL", "-g", str(self.shell.pid)], check=False)

    def close(self) -> None:
        self._too_long.cancel()
        self.kill()
        self.shell.communicate()


def test_every_command_prints_what_the_tutorial_shows(tmp_path: Path) -> None:
    for code in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", TUTORIAL, re.DOTALL):
        (tmp_path / code[1]).write_text(code[0], "utf-8")
    with contextlib.closing(Reader(tmp_path)) as reader:
        for command in commands():
            said = reader.types(command)
            again_until = time.monotonic() + PATIENCE
            while not command.shown_by(said) and command.looks and time.monotonic() < again_until:
                said = reader.types(command)
            assert command.shown_by(said), f"{command.typed} printed:\n{said}"


def test_the_line_of_the_leak_is_the_one_that_it_names() -> None:
    [code] = re.findall(r"```python\n(# shop\.py\n.*?)```", TUTORIAL, re.DOTALL)
    assert code.splitlines()[21].strip() == "connection = engine.connect()"
