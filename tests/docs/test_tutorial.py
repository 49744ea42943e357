"""The tutorial: its files are written, its commands are typed into a shell, and print what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.pages import DOCS

TUTORIAL = (DOCS / "tutorial.md").read_text("utf-8")
TIMEOUT = 120.0  # seconds for all of it on a busy machine

# What `make setup` has done already.
INSTALLS = ("python3 -m venv ", "pip install ")
MARK = "--- a command of the tutorial"


@dataclass(slots=True)
class Command:
    """A line that is typed, and the lines that it prints; `…` stands for anything."""

    typed: str
    printed: list[str] = field(default_factory=list)

    @property
    def pattern(self) -> str:
        lines = [".*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) for line in self.printed]
        return "\n".join(lines)


def commands() -> list[Command]:
    found: list[Command] = []
    for block in re.findall(r"```console\n(.*?)```", TUTORIAL, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Command(line[2:]))
            else:
                found[-1].printed.append(line)
    return [command for command in found if not command.typed.startswith(INSTALLS)]


def test_every_command_prints_what_the_tutorial_shows(tmp_path: Path) -> None:
    for code in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", TUTORIAL, re.DOTALL):
        (tmp_path / code[1]).write_text(code[0], "utf-8")
    typed = commands()
    script = "".join(f"echo '{MARK}'\n{command.typed}\n" for command in typed)
    # Whatever happens, nothing of it is left behind: it all has one process group.
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    try:
        output, _ = shell.communicate(timeout=TIMEOUT)
    finally:
        subprocess.run(["pkill", "-KILL", "-g", str(shell.pid)], check=False)
        shell.wait()
    _, *printed = output.split(f"{MARK}\n")
    assert len(printed) == len(typed)
    for command, said in zip(typed, printed, strict=True):
        if command.printed:
            assert re.fullmatch(command.pattern, said.strip("\n"), re.DOTALL), f"{command.typed} printed:\n{said}"


def test_the_line_of_the_leak_is_the_one_that_it_names() -> None:
    [code] = re.findall(r"```python\n(# shop\.py\n.*?)```", TUTORIAL, re.DOTALL)
    assert code.splitlines()[21].strip() == "connection = engine.connect()"
