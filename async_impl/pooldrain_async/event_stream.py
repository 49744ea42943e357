"""A stream of server-sent events that is ended between two of them: its client comes again, elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Message, Send

from pooldrain.answers import EVENT_ENDS, is_event_stream, last_bytes
from pooldrain.gate import RequestGate


class EventStream:
    """A response that is such a stream. `told` is called when it is about to be ended."""

    ended = False

    def __init__(self, gate: RequestGate, send: Send, told: Callable[[], None]) -> None:
        self._gate = gate
        self._send = send
        self._told = told
        self._between = True  # two events, and nothing is being sent
        self._last = b""  # bytes
        self._ending: asyncio.Task[None] | None = None  # kept, or it would be collected

    async def send(self, message: Message) -> None:
        """Send a part; end behind it, if that is due. Raises OSError, as to who has left, once it is ended."""
        if self.ended:
            raise BrokenPipeError("the stream has been ended, since the service is shutting down")
        self._between = False
        await self._send(message)
        self._last = last_bytes(self._last, message.get("body", b""))
        if message.get("more_body", False) and self._last.endswith(EVENT_ENDS):
            self._between = True
            if self._gate.ends_streams:
                await self._end()

    def end(self) -> None:
        """End it now, or behind the event that is being sent. The application is told that its client has left."""
        if self._between and not self.ended:
            self.ended = True
            self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        self.ended = True
        self._told()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def is_stream(message: Message) -> bool:
    """Whether a response that begins like this is a stream of events."""
    for name, value in message.get("headers", ()):
        if name == b"content-type" or name.lower() == b"content-type":
            return is_event_stream(value.decode("latin-1"))
    return False
