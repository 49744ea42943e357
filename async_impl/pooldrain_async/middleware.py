"""The request gate as pure ASGI middleware.

A request is in flight from here until the application's call has returned, background tasks included, and its
client has taken the response, or it was broken off. (Not Starlette's BaseHTTPMiddleware: it costs tens of
microseconds and mishandles streams.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pooldrain.answers import Answer
from pooldrain.gate import BODILESS, CLIENT, ONE_WRITE
from pooldrain.in_flight import CURRENT_REQUEST, Client, InFlightRequest
from pooldrain.problems import CUT, Failure, is_default_page, refusal
from pooldrain.sqla.errors import failure_of, tell_failure
from pooldrain_async.event_stream import EventStream, is_stream
from pooldrain_async.runner import Runner
from pooldrain_async.websocket import address_of, serve_websocket

_CLOSE = (b"connection", b"close")

# What uvicorn raises when a body does not have the length that was announced.
_BREACHES = {
    "Response content longer than Content-Length": "longer",
    "Response content shorter than Content-Length": "shorter",
    "Unexpected ASGI message 'http.response.body' sent, after response already completed.": "longer",
}


class LoopClient(Client, Protocol):
    """What an asyncio server's adapter puts into the scope as CLIENT; the gate takes it out."""

    @property
    def task(self) -> asyncio.Task[None] | None:
        """What serves its request."""
        ...

    @property
    def owes_body(self) -> bool:
        """Whether it has not sent all of its request yet: the rest is not waited for behind the answer."""
        ...

    @property
    def sent(self) -> bool:
        """Whether there is nothing for `when_sent` to wait for."""
        ...

    def break_off(self) -> None:
        """Break the response off."""

    def close_after(self) -> None:
        """Close the connection after this response."""


class GateMiddleware:
    """Admits requests to `app`, refuses them with 503 once the gate is closed."""

    def __init__(self, app: ASGIApp, runner: Runner) -> None:
        self._app = app
        self._runner = runner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await serve_websocket(self._app, self._runner, scope, receive, send)
            else:
                await self._app(scope, receive, send)
            return
        # Taken out: it knows the scope, and two that know each other wait for the garbage collector.
        client: LoopClient | None = scope.pop(CLIENT, None)
        method, path = scope["method"], scope["path"]
        runner = self._runner
        if path in runner.probes.uncounted:
            responder = _Responder(runner, send, client)
            answer = runner.probes.answer(method, path, runner.phase)
            try:
                if answer is None:
                    await self._app(scope, receive, responder.send)
                else:
                    await send_answer(answer, responder.send)
            except RuntimeError as error:
                if not self._breach(error, None, scope, client):
                    raise
            return
        # The server knows the task; asking asyncio for it costs a system call.
        worker = asyncio.current_task() if client is None else client.task
        address = "" if runner.access is None else address_of(scope)
        request = runner.admit(method, path, scope["headers"], worker=worker, address=address)
        if request is None:
            accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
            await send_answer(refusal(accept.decode("latin-1"), ends_streams=runner.gate.ends_streams), send)
            return
        request.client = client
        token = CURRENT_REQUEST.set(request)
        responder = _Responder(runner, send, client, request)
        try:
            await self._app(scope, receive, responder.send)
            if responder.held is not None:
                await responder.let_through()
        except asyncio.CancelledError:
            if not request.cancelled:
                raise
            await responder.cut()  # by our own deadline: the task ends here, and its client learns why
        except BaseException as error:
            if responder.events is not None and responder.events.ended and isinstance(error, OSError):
                pass  # the application has heard so that its stream is over
            elif self._breach(error, request, scope, client):
                responder.complete = False
            elif not request.cancelled and isinstance(error, Exception) and await responder.explains(error):
                pass
            elif not request.cancelled or not isinstance(error, Exception) or responder.lost_its_client(error):
                request.status = request.status or 500
                raise
            else:
                await responder.cut()  # it failed because we cancelled it
        finally:
            CURRENT_REQUEST.reset(token)
            request.broken = not responder.complete
            if client is None or client.sent:
                runner.end(request)
            else:
                client.when_sent(partial(runner.end, request))

    def _breach(
        self, error: BaseException, request: InFlightRequest | None, scope: Scope, client: LoopClient | None
    ) -> bool:
        """Whether a response is not as long as it has announced, as uvicorn has seen: its connection is closed."""
        body = _BREACHES.get(str(error)) if isinstance(error, RuntimeError) else None
        if body is None or client is None:
            return False
        if request is None or not request.cancelled:
            self._runner.response_broken(request, scope["method"], scope["path"], body)
        client.break_off()
        return True


class _Responder:
    """`send`, with what only the gate knows: that the connection has to close, that a request was cut."""

    # Defaults live in the class: a responder is made for every answer, and few of them change.
    _replaced = False
    held: Message | None = None  # the head of a page that may have to be replaced
    _begun = False  # some of the body was handed over before the drain timed out
    complete = False
    events: EventStream | None = None  # if it is one

    def __init__(
        self, runner: Runner, send: Send, client: LoopClient | None, request: InFlightRequest | None = None
    ) -> None:
        self._runner = runner
        self._send = send
        self._client = client
        self._request = request

    def send(self, message: Message) -> Awaitable[None]:
        """Send a part of the response."""
        # Not a coroutine of our own: it would cost more than what it does.
        if message["type"] == "http.response.start":
            request = self._request
            if request is not None:
                request.status = message["status"]
                if request.cancelled and request.was_cut:
                    # The application failed because we cancelled it: the client learns that, not "internal error".
                    return self.send_cut()
                if message["status"] == 500 and request.failure is not None and self.held is not message:
                    self.held = message  # if this is its framework's page, ours says more
                    return _nothing()
            if message["status"] in BODILESS:
                headers = [header for header in message.get("headers", ()) if header[0].lower() != b"content-length"]
                message = {**message, "headers": headers}
            if not self._runner.gate.keep_alive or (self._client is not None and self._client.owes_body):
                headers = list(message.get("headers", ()))
                if _CLOSE not in headers:
                    message = {**message, "headers": [*headers, _CLOSE]}
            if self._request is not None and is_stream(message):
                self.events = EventStream(self._runner.gate, self._send, self._ended_early)
                self._request.end_stream = self.events.end
        elif self._replaced:
            return _nothing()
        elif self.held is not None:
            return self._settle(message)
        elif not message.get("more_body", False):
            self.complete = True
            if (request := self._request) is not None:
                size = len(message.get("body", b""))
                request.sent += size
                if size <= ONE_WRITE:
                    request.answered = True  # before the client can know it and ask who is being served
        elif self._request is not None:
            self._request.sent += len(message.get("body", b""))
            self._stream_on(self._request)
        if self.events is not None and message["type"] == "http.response.body":
            return self.events.send(message)
        return self._send(message)

    def _ended_early(self) -> None:
        """The stream of events is about to be ended."""
        self.complete = True
        if self._client is not None:
            self._client.close_after()  # for its client to come again on another connection

    async def _settle(self, message: Message) -> None:
        """The first part of the body has come: the page of a framework that knows of no database is replaced."""
        assert self._request is not None
        failure = self._request.failure
        if isinstance(failure, Failure) and is_default_page(message.get("body", b"")):
            self.held = None
            await send_answer(failure.answer(self._request), self.send)
            self._replaced = True
        else:
            await self.let_through()
            await self.send(message)

    async def let_through(self) -> None:
        """Send a head that was held back."""
        if (held := self.held) is not None:
            await self.send(held)
            self.held = None

    async def explains(self, error: Exception) -> bool:
        """Whether the client is told why the application, which has let this error through, has no connection."""
        assert self._request is not None
        failure = failure_of(error)
        if failure is None and not self._replaced:
            await self.let_through()
            return False
        tell_failure(error, self._request.route)
        if failure is not None and (self._request.status is None or self.held is not None):
            self.held = None
            await send_answer(failure.answer(self._request), self.send)
            self._replaced = True
        return self._replaced

    def _stream_on(self, request: InFlightRequest) -> None:
        """A part of a body is sent; a response that goes on beyond the drain timeout is broken off."""
        if not request.cancelled:
            self._begun = True
        elif self._begun and isinstance(request.worker, asyncio.Task):
            request.worker.cancel()

    def lost_its_client(self, error: Exception) -> bool:
        """Whether a whole answer could not be sent, which is how ASGI tells that its client has left."""
        return self.complete and isinstance(error, OSError)

    async def cut(self) -> None:
        """The request was cancelled, and has unwound: say so, or break the answer off; a whole one is left alone."""
        assert self._request is not None
        self._request.unwound = True
        if self._request.status is None:
            await self.send_cut()
        elif not self.complete:
            if self._client is None:
                raise BrokenPipeError  # a server that we do not know breaks it off at any error
            self._client.break_off()

    async def send_cut(self) -> None:
        """Answer that the request overstayed, instead of whatever the application still sends."""
        assert self._request is not None
        self._request.status, self._request.sent = CUT.status, len(CUT.body)
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
