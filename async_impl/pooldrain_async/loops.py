"""The event loop that everything runs on, by its name."""

from __future__ import annotations

import asyncio

from pooldrain.runtime.options.readers import Loop


def new_loop(name: Loop) -> asyncio.AbstractEventLoop:
    """A new one. Raises ModuleNotFoundError if its extra is not installed."""
    if name == "asyncio":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()
