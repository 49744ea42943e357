"""What a driver's connection is asked, in one place: psycopg 3 and 2, sqlite3, aiosqlite, and whatever else comes.

Drivers differ in their answers, and a connection may be closed by somebody else while it is asked. So nothing here
raises: what cannot be told is None where that makes a difference, and False where it does not.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

# libpq's PGTransactionStatusType: PQTRANS_IDLE, PQTRANS_ACTIVE; anything above is in a transaction, 4 is "unknown".
_IDLE, _ACTIVE, _UNKNOWN = 0, 1, 4


def in_transaction(driver: Any) -> bool | None:
    """Whether a driver's connection is in a transaction; None if it cannot tell."""
    try:
        if (status := _transaction_status(driver)) is not None:
            return None if status == _UNKNOWN else status != _IDLE
        open_transaction = getattr(driver, "in_transaction", None)
        return open_transaction if isinstance(open_transaction, bool) else None
    except Exception:  # noqa: BLE001 - closed meanwhile, or a driver with notions of its own: it cannot tell
        return None


def is_executing(driver: Any) -> bool | None:
    """Whether the connection is running a statement right now; None if it cannot tell."""
    try:
        status = _transaction_status(driver)
    except Exception:  # noqa: BLE001 - as above
        return None
    return None if status is None or status == _UNKNOWN else status == _ACTIVE


def _transaction_status(driver: Any) -> int | None:
    """The transaction status in libpq's numbers (psycopg 3 has an enumeration, 2 a number); None for others."""
    info = getattr(driver, "info", None)
    status = getattr(info, "transaction_status", None)
    return None if status is None else int(getattr(status, "value", status))


def is_busy(driver: Any) -> bool:
    """Whether another thread or task is using the driver's connection right now (psycopg's own lock tells)."""
    try:
        lock = getattr(driver, "lock", None)
        return lock is not None and bool(lock.locked())
    except Exception:  # noqa: BLE001 - as above
        return False


def shut_down_socket(driver: Any) -> bool:
    """End a connection from outside, freeing nothing that another thread may be using. False if it has no socket."""
    try:
        descriptor = os.dup(driver.fileno())
    except Exception:  # noqa: BLE001 - closed meanwhile, or a driver without a socket: nothing to end either way
        return False
    with socket.socket(fileno=descriptor) as connection:
        try:
            driver.fileno()  # closed before it was duplicated, the number may be another socket's: then this raises
            connection.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            return error.errno == errno.ENOTCONN  # ended before
        except Exception:  # noqa: BLE001 - as above
            return False
    return True
