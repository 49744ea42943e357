"""The event loop that everything runs on, by its name."""

from __future__ import annotations

import asyncio

from pooldrain.runtime.options.readers import Loop


def new_loop(name: Loop) -> asyncio.AbstractEventLoop:
    """A new one; `auto` is uvloop where it is installed. Raises ModuleNotFoundError if its extra is not."""
    if name == "asyncio":
        return asyncio.new_event_loop()
    try:
        import uvloop
    except ModuleNotFoundError:
        if name == "auto":
            return asyncio.new_event_loop()
        raise
    return uvloop.new_event_loop()
