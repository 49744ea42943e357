"""Errors that pooldrain raises, each with a one-line message a user can act on."""

from __future__ import annotations

from pooldrain.printable import printable


class PooldrainError(Exception):
    """Base of every error that pooldrain raises on purpose."""


class ConfigurationError(PooldrainError, ValueError):
    """An option, environment variable or policy is wrong; the message says which and how to mend it."""


class StartupError(PooldrainError):
    """The service could not start: database out of reach, port in use, pool not filled."""


class PoolClosed(PooldrainError):
    """A checkout was asked of a pool that is closing or closed.

    Carries the pool's numbers, so that one log line tells the whole story.
    """

    def __init__(self, *, pool_size: int, checkedout: int, waiting: bool = False) -> None:
        how = "while waiting for a connection" if waiting else "at checkout"
        super().__init__(
            f"the connection pool is closed ({how}): the service is shutting down "
            f"(pool_size {pool_size}, checked out {checkedout})"
        )
        self.pool_size = pool_size
        self.checkedout = checkedout
        self.waiting = waiting


class InvalidRequest(PooldrainError):
    """A request turned out not to be valid HTTP, maybe while its body was being read. `status`: of the answer to it."""

    def __init__(self, why: str, status: int = 400) -> None:
        super().__init__(why)
        self.status = status


def describe_error(error: BaseException) -> str:
    """An exception in one line, for a log or a report."""
    text = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
