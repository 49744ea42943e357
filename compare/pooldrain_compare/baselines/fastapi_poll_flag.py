"""The recipe that tutorials teach: a signal sets a flag, new requests are refused, a task polls, then disposes.

As it is often printed, it installs its signal handler before uvicorn does, and is replaced by uvicorn's: nothing of
it ever runs. Here the handler is installed in the lifespan, where it holds, and hands on to uvicorn's at the end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from pooldrain_compare.baselines.fastapi_app import make_app, make_engine

DRAIN_TIMEOUT = float(os.environ.get("DRAIN_TIMEOUT", "30"))  # seconds
DISPOSE_TIMEOUT = 10.0

engine = make_engine()


async def shut_down(app: FastAPI, shutdown_event: asyncio.Event, stop_server: Any) -> None:
    """Wait for the signal, drain, dispose of the engine, stop the server."""
    await shutdown_event.wait()
    app.state.accepting = False
    started = time.monotonic()
    while app.state.active > 0 and time.monotonic() - started < DRAIN_TIMEOUT:  # noqa: ASYNC110 - that is the recipe
        await asyncio.sleep(0.1)
    await asyncio.wait_for(engine.dispose(), DISPOSE_TIMEOUT)
    stop_server(signal.SIGTERM, None)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Listen for the signal."""
    shutdown_event = asyncio.Event()
    monitor = asyncio.create_task(shut_down(app, shutdown_event, signal.getsignal(signal.SIGTERM)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, shutdown_event.set)
    yield
    monitor.cancel()


app = make_app(engine, lifespan=lifespan)
app.state.accepting = True
app.state.active = 0


@app.middleware("http")
async def shutdown_middleware(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Count requests, and refuse them once the flag is set."""
    if not app.state.accepting:
        return JSONResponse({"error": "Server is shutting down"}, status_code=503)
    app.state.active += 1
    try:
        return await call_next(request)
    finally:
        app.state.active -= 1
