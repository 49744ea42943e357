"""What SQLite lacks and the demo needs: a wait."""

from __future__ import annotations

import time
from typing import Any

WAIT_STEP = 0.01  # seconds between two chances to interrupt


def add_wait_function(dbapi_connection: Any, record: object = None) -> None:
    """A `connect` listener that gives SQLite what the demo's `/work` query calls: a wait, in interruptible steps."""

    def wait(seconds: float, step: int) -> bool:
        time.sleep(min(WAIT_STEP, seconds))
        return step * WAIT_STEP < seconds

    dbapi_connection.create_function("pooldrain_wait", 2, wait)
