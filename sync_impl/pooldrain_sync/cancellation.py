"""Cancels the statement that a connection is running."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

from pooldrain.sqla.drivers import cancellation


def cancel(driver: Any, timeout: float) -> None:
    """Cancel what a driver's connection is running, within `timeout` seconds; one of asyncio's, too."""
    with suppress(Exception):  # it may have finished or died meanwhile: then there is nothing to cancel
        cancelling = cancellation(driver, timeout)
        if cancelling is not None:
            asyncio.run(_awaited(cancelling))


async def _awaited(cancelling: Awaitable[None]) -> None:
    await cancelling
