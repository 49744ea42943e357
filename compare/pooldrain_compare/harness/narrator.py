"""Progress: a live bar where there is a terminal, plain lines where there is none. On stderr; results go to stdout."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_WIDTH = 120  # columns of what is printed into a file or a pipe


def result_console() -> Console:
    """Where results are printed."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def campaign_progress(console: Console, title: str) -> Progress:
    """A bar for many trials, `title` before it; nothing is left of it at the end."""
    return Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


class Narrator:
    """Says what is being done now. Each job is a bar; without a terminal, a line for each new thing it does."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[doing]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._live,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, markup=False, soft_wrap=True)

    def job(self, name: str) -> Callable[[str, float], None]:
        """A job's reporter: called with what it does now and how much of all has been done (0 to 1)."""
        task = self._progress.add_task(name, total=1.0, doing="")
        said: list[str] = []

        def report(doing: str, done: float) -> None:
            self._progress.update(task, completed=done, doing=doing)
            stage = doing.partition(":")[0]
            if not self._live and stage not in said:
                said.append(stage)
                self.say(f"{name}: {stage}")

        return report
