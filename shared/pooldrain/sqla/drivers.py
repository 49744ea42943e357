"""What a driver's connection is asked and told, in one table: psycopg 3 and 2, asyncpg, sqlite3, aiosqlite.

Drivers differ in their answers, and a connection may be closed by somebody else while it is asked. So nothing here
raises, but for what `cancellation` gives; what cannot be told is None. A driver that the table does not have is asked
as psycopg is: many answer in part.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

# libpq's PGTransactionStatusType: PQTRANS_IDLE, PQTRANS_ACTIVE; anything above is in a transaction, 4 is "unknown".
_IDLE, _ACTIVE, _UNKNOWN = 0, 1, 4


@dataclass(frozen=True, slots=True)
class Driver:
    """What one driver's connection offers; each function takes the connection, and may raise."""

    in_transaction: Callable[[Any], bool | None]
    executing: Callable[[Any], bool | None]  # whether it is running a statement
    busy: Callable[[Any], bool | None]  # whether another thread or task is using it
    descriptor: Callable[[Any], int] | None  # of its socket; None: it has none
    # Cancels what it runs, within so many seconds; what is returned, if anything, is to be awaited.
    cancel: Callable[[Any, float], Awaitable[None] | None] | None


def _transaction_status(driver: Any) -> int | None:
    """The transaction status in libpq's numbers (psycopg 3 has an enumeration, 2 a number); None for others."""
    info = getattr(driver, "info", None)
    status = getattr(info, "transaction_status", None)
    number = None if status is None else int(getattr(status, "value", status))
    return None if number == _UNKNOWN else number


def _libpq_in_transaction(driver: Any) -> bool | None:
    status = _transaction_status(driver)
    return None if status is None else status != _IDLE


def _libpq_executing(driver: Any) -> bool | None:
    status = _transaction_status(driver)
    return None if status is None else status == _ACTIVE


def _flagged(driver: Any) -> bool | None:
    flag = driver.in_transaction
    return flag if isinstance(flag, bool) else None


def _cannot_tell(driver: Any) -> None:
    return None


def _cancel_asyncpg(driver: Any, timeout: float) -> None:
    # asyncpg cancels by itself when the task that waits is cancelled, and offers nothing else; its own way to do so
    # belongs to its loop, which may be another thread's.
    loop = driver._loop
    loop.call_soon_threadsafe(lambda: driver._cancel_current_command(loop.create_future()))


def _cancel_anyhow(driver: Any, timeout: float) -> Awaitable[None] | None:
    cancelling: Awaitable[None] | None = None
    if hasattr(driver, "cancel_safe"):
        cancelling = driver.cancel_safe(timeout=timeout)
    elif hasattr(driver, "interrupt"):
        cancelling = driver.interrupt()
    elif hasattr(driver, "cancel"):
        cancelling = driver.cancel()
    return cancelling


_TABLE = {
    "psycopg": Driver(
        _libpq_in_transaction,
        _libpq_executing,
        lambda driver: bool(driver.lock.locked()),
        lambda driver: int(driver.fileno()),
        lambda driver, timeout: driver.cancel_safe(timeout=timeout),
    ),
    "psycopg2": Driver(
        _libpq_in_transaction,
        _libpq_executing,
        lambda driver: bool(driver.isexecuting()),
        lambda driver: int(driver.fileno()),
        lambda driver, timeout: driver.cancel(),
    ),
    "asyncpg": Driver(
        lambda driver: bool(driver.is_in_transaction()),
        _cannot_tell,
        _cannot_tell,
        lambda driver: int(driver._transport.get_extra_info("socket").fileno()),
        _cancel_asyncpg,
    ),
    "sqlite3": Driver(_flagged, _cannot_tell, _cannot_tell, None, lambda driver, timeout: driver.interrupt()),
    "aiosqlite": Driver(_flagged, _cannot_tell, _cannot_tell, None, lambda driver, timeout: driver.interrupt()),
}


def _any_in_transaction(driver: Any) -> bool | None:
    told = _libpq_in_transaction(driver)
    return _flagged(driver) if told is None and hasattr(driver, "in_transaction") else told


_ANY = Driver(
    _any_in_transaction,
    _libpq_executing,
    lambda driver: bool(driver.lock.locked()) if hasattr(driver, "lock") else None,
    lambda driver: int(driver.fileno()),
    _cancel_anyhow,
)


def _of(driver: Any) -> Driver:
    for kind in type(driver).__mro__:
        row = _TABLE.get(kind.__module__.partition(".")[0])
        if row is not None:
            return row
    return _ANY


def limits(driver: str) -> str:
    """What cannot be done with a driver, by SQLAlchemy's name for it, in words; empty for one of the table."""
    if driver in _TABLE or driver == "pysqlite":  # which is sqlite3
        return ""
    return (
        "what it runs may not be cancelled, and its transactions may not be told, from outside; it is drained, tracked "
        "and disposed all the same"
    )


def in_transaction(driver: Any) -> bool | None:
    """Whether a driver's connection is in a transaction, or runs a statement; None if it cannot tell."""
    return _asked(_of(driver).in_transaction, driver)


def is_executing(driver: Any) -> bool | None:
    """Whether the connection is running a statement right now; None if it cannot tell."""
    return _asked(_of(driver).executing, driver)


def is_busy(driver: Any) -> bool | None:
    """Whether another thread or task is using the driver's connection right now; None if it cannot tell."""
    return _asked(_of(driver).busy, driver)


def _asked(question: Callable[[Any], bool | None], driver: Any) -> bool | None:
    try:
        return question(driver)
    except Exception:  # noqa: BLE001 - closed meanwhile, or a driver with notions of its own: it cannot tell
        return None


def has_news(driver: Any) -> bool:
    """Whether something has come on its socket that nobody has read: its end, as a rule; True if it cannot tell."""
    descriptor_of = _of(driver).descriptor
    if descriptor_of is None:
        return False
    poll = select.poll()
    try:
        poll.register(descriptor_of(driver), select.POLLIN)
        return bool(poll.poll(0))
    except Exception:  # noqa: BLE001 - closed meanwhile, or a driver without a socket
        return True


def cancellation(driver: Any, timeout: float) -> Awaitable[None] | None:
    """Cancel what a driver's connection is running, within `timeout` seconds. May block, and may raise.

    What is returned, if anything, does it when awaited, on any loop.
    """
    cancel = _of(driver).cancel
    return None if cancel is None else cancel(driver, timeout)


def is_usable_here(driver: Any) -> bool:
    """Whether this thread may use the connection: sqlite3 may keep one to the thread that has opened it."""
    if type(driver).__module__ != "sqlite3":
        return True
    try:
        driver.cursor().close()
    except Exception:  # noqa: BLE001 - sqlite3.ProgrammingError, of another thread's, or of a closed one
        return False
    return True


def shut_down_socket(driver: Any) -> bool:
    """End a connection from outside, freeing nothing that another thread may be using. False if it has no socket."""
    descriptor_of = _of(driver).descriptor
    if descriptor_of is None:
        return False
    try:
        descriptor = os.dup(descriptor_of(driver))
    except Exception:  # noqa: BLE001 - closed meanwhile, or a driver without a socket: nothing to end either way
        return False
    with socket.socket(fileno=descriptor) as connection:
        try:
            descriptor_of(driver)  # closed before it was duplicated, the number may be another socket's: this raises
            connection.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            return error.errno == errno.ENOTCONN  # ended before
        except Exception:  # noqa: BLE001 - as above
            return False
    return True
