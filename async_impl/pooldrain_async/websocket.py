"""WebSockets: in flight as requests are, and told at the drain's start that the service restarts (close code 1012).

There are none on threads: WSGI (PEP 3333) knows requests and answers only.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pooldrain.gate import CLIENT, RequestGate
from pooldrain.in_flight import CURRENT_REQUEST
from pooldrain.problems import REFUSED
from pooldrain_async.runner import Runner

if TYPE_CHECKING:
    from pooldrain.answers import Answer

# What a WebSocket is called among the requests.
METHOD = "WEBSOCKET"

# "Service Restart": its client is to come again (IANA's registry of close codes, RFC 6455 section 11.7).
SERVICE_RESTART = 1012

_ACCEPTED = 101


class Peer(Protocol):
    """What a server's adapter puts into the scope of a WebSocket as CLIENT; the gate takes it out."""

    async def wait_gone(self) -> None:
        """Wait until the connection is gone."""


class _Conversation:
    """A WebSocket that is ended from outside as soon as that is wanted."""

    ended = False
    accepted = False

    def __init__(self, gate: RequestGate, send: Send) -> None:
        self._gate = gate
        self._send = send
        self._ending: asyncio.Task[None] | None = None  # kept, or it would be collected

    async def send(self, message: Message) -> None:
        """Send a message. Raises OSError, as to who has left, once it is ended."""
        if self.ended:
            raise BrokenPipeError("the WebSocket has been closed, since the service is shutting down")
        await self._send(message)
        if message["type"] == "websocket.accept":
            self.accepted = True
            if self._gate.ends_streams:
                await self._end()

    def end(self) -> None:
        """Close it now, or as soon as it is accepted. The application is told that its client has left."""
        if self.accepted and not self.ended:
            self.ended = True
            self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        self.ended = True
        await self._send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": "the service restarts"})


async def serve_websocket(app: ASGIApp, runner: Runner, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a WebSocket, or refuse it with 503. It is in flight until its client has answered the close."""
    peer: Peer | None = scope.pop(CLIENT, None)
    request = runner.admit(
        METHOD, scope["path"], scope["headers"], worker=asyncio.current_task(), address=address_of(scope)
    )
    if request is None:
        await _refuse(scope, receive, send, REFUSED)
        return
    conversation = _Conversation(runner.gate, send)
    request.end_stream = conversation.end
    token = CURRENT_REQUEST.set(request)
    try:
        await app(scope, receive, conversation.send)
        if conversation.ended and peer is not None:
            await peer.wait_gone()
        request.status = _ACCEPTED
    except asyncio.CancelledError:
        if not request.cancelled:
            raise
        request.unwound = True  # by our own deadline
    except BaseException as error:
        if request.cancelled and isinstance(error, Exception):
            request.unwound = True
        elif not (conversation.ended and isinstance(error, OSError)):
            request.status = 500
            raise
        else:
            request.status = _ACCEPTED  # the application has heard so that its client was sent away
    finally:
        CURRENT_REQUEST.reset(token)
        runner.end(request)


def address_of(scope: Scope) -> str:
    """The client's address; empty over a Unix socket."""
    client = scope.get("client")
    return client[0] if client else ""


async def _refuse(scope: Scope, receive: Receive, send: Send, answer: Answer) -> None:
    await receive()  # websocket.connect
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close"})
        return
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    await send({"type": "websocket.http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": answer.body})
