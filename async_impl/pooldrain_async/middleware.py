"""The request gate as pure ASGI middleware.

A request is in flight from here until the application's call returns, background tasks included. (Not
Starlette's BaseHTTPMiddleware: it costs tens of microseconds and mishandles streams.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pooldrain.gate import CURRENT_REQUEST, UNCOUNTED_PATHS, InFlightRequest
from pooldrain.status import CUT, REFUSED, Answer
from pooldrain_async.runner import Runner

_CLOSE = (b"connection", b"close")


class GateMiddleware:
    """Admits requests to `app`, refuses them with 503 once the gate is closed."""

    def __init__(self, app: ASGIApp, runner: Runner) -> None:
        self._app = app
        self._runner = runner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        runner = self._runner
        if path in UNCOUNTED_PATHS:
            await self._app(scope, receive, _Responder(runner, send))
            return
        request = runner.admit(method, path, scope["headers"], worker=asyncio.current_task())
        if request is None:
            await send_answer(REFUSED, send)
            return
        token = CURRENT_REQUEST.set(request)
        responder = _Responder(runner, send, request)
        try:
            await self._app(scope, receive, responder)
        except asyncio.CancelledError:
            if not request.cancelled:
                raise
            # Cancelled by our own deadline: the task ends here, and its client learns why.
            if request.status is None:
                await responder.send_cut()
        except BaseException:
            if request.status is None:
                request.status = 500
            raise
        finally:
            CURRENT_REQUEST.reset(token)
            request.broken = not responder.complete
            runner.end(request)


class _Responder:
    """`send`, with what only the gate knows: that the connection has to close, that a request was cut."""

    __slots__ = ("_replaced", "_request", "_runner", "_send", "complete")

    def __init__(self, runner: Runner, send: Send, request: InFlightRequest | None = None) -> None:
        self._runner = runner
        self._send = send
        self._request = request
        self._replaced = False
        self.complete = False

    def __call__(self, message: Message) -> Awaitable[None]:
        # Not a coroutine of our own: it would cost more than what it does.
        if message["type"] == "http.response.start":
            request = self._request
            if request is not None:
                request.status = message["status"]
                if request.cancelled and request.was_cut:
                    # The application failed because we cancelled it: the client learns that, not "internal error".
                    return self.send_cut()
            if not self._runner.gate.accepting:
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
        elif self._replaced:
            return _nothing()
        elif not message.get("more_body", False):
            self.complete = True
            if self._request is not None:
                self._request.answered = True  # before the client can know it and ask who is being served
        return self._send(message)

    async def send_cut(self) -> None:
        """Answer that the request overstayed, instead of whatever the application still sends."""
        assert self._request is not None
        self._request.status = CUT.status
        self._replaced = self.complete = True
        await send_answer(CUT, self._send)


async def _nothing() -> None:
    pass


async def send_answer(answer: Answer, send: Send) -> None:
    """Send a whole answer."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    if answer.close:
        headers.append(_CLOSE)
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
