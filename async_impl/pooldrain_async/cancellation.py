"""Cancels the statement that a connection is running, without blocking the loop."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

from pooldrain.sqla.drivers import cancellation
from pooldrain_async.bounded import in_thread


async def cancel(driver: Any, timeout: float, *, on_loop: bool) -> None:
    """Cancel what a driver's connection is running, within `timeout` seconds; one of threads, which may block, too."""
    with suppress(Exception):  # it may have finished or died meanwhile: then there is nothing to cancel
        if on_loop:
            cancelling = cancellation(driver, timeout)
        else:
            cancelling = await in_thread(partial(cancellation, driver, timeout))
        if cancelling is not None:
            await cancelling
