"""The application's end: which of its functions runs, and whether anybody still waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence


class Ending:
    """The functions that an application has to run at its end, called one after the other by who iterates.

    `functions` have their names; `failed` is told what went wrong: with which, and the error.
    """

    def __init__(
        self,
        functions: Sequence[tuple[str, Callable[[], object]]],
        failed: Callable[[str, BaseException], None],
    ) -> None:
        self._functions = functions
        self._failed = failed
        self._running = functions[0][0] if functions else None  # its name
        self._abandoned = False

    def __bool__(self) -> bool:
        return bool(self._functions)

    def __iter__(self) -> Iterator[Callable[[], object]]:
        for name, function in self._functions:
            if self._abandoned:
                return  # nobody waits any more
            self._running = name
            yield function
        self._running = None

    def failed(self, error: BaseException) -> None:
        """The function that runs has raised; told while somebody waits."""
        if not self._abandoned:
            self._failed(f"the shutdown function {self._running}", error)

    def abandon(self) -> str | None:
        """Wait no longer: what still runs, by name, is left to itself and tells nothing more. None: it has ended."""
        running = self._running
        self._abandoned = running is not None
        return running
