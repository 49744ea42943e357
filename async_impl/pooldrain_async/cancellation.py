"""Cancels the statement that a connection is running, without blocking the loop."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


async def cancel(driver: Any, timeout: float) -> None:
    """Cancel what a driver's connection is running: psycopg on the server, within `timeout` seconds, SQLite here."""
    with suppress(Exception):  # it may have finished or died meanwhile: then there is nothing to cancel
        if hasattr(driver, "cancel_safe"):
            await driver.cancel_safe(timeout=timeout)
        else:
            await driver.interrupt()
