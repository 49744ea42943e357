"""Applications that say what their requests left.

`/garbage` answers how many objects only the collector frees, `/requests` how many requests are still in memory,
`/watched` how many objects the collector looks at.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

import pooldrain_async.runner
import pooldrain_sync.runner
from pooldrain.in_flight import InFlightRequest

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def answer(path: str) -> bytes:
    """The answer to a request for `path`."""
    match path:
        case "/garbage":
            number = gc.collect()
        case "/requests":
            number = sum(isinstance(each, InFlightRequest) for each in gc.get_objects())
        case "/watched":
            number = len(gc.get_objects())
        case _:
            number = 0
    return str(number).encode()


def create_sync(runner: pooldrain_sync.runner.Runner) -> WSGIApplication:
    """On threads."""
    gc.disable()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = answer(environ["PATH_INFO"])
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    return app


def create_async(runner: pooldrain_async.runner.Runner) -> ASGIApp:
    """On asyncio."""
    gc.disable()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("no lifespan here")  # how ASGI wants it said
        body = answer(scope["path"])
        headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app
