"""WebSockets on uvicorn: whichever protocol of uvicorn's is installed, with what the gate has to know of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pooldrain.gate import CLIENT
from pooldrain_async.servers.forwarded import believe

if TYPE_CHECKING:
    import uvicorn

    from pooldrain_async.servers.uvicorn import DrainState


def websocket_protocol() -> type[asyncio.Protocol] | None:
    """What speaks WebSocket, the library of the extra or another one that uvicorn knows; None if there is none."""
    from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

    if AutoWebSocketsProtocol is None:
        return None
    base: Any = AutoWebSocketsProtocol

    class DrainWebSocket(base):  # type: ignore[misc]  # whichever is installed
        """One of uvicorn's, which tells the gate when its connection is gone, and believes trusted proxies."""

        def __init__(self, config: uvicorn.Config, server_state: DrainState, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, server_state, *args, **kwargs)
            self._state = server_state
            self._gone = asyncio.Event()

        async def wait_gone(self) -> None:
            """Wait until the connection is gone."""
            await self._gone.wait()

        def connection_lost(self, exc: Exception | None) -> None:
            """The connection is gone."""
            super().connection_lost(exc)
            self._gone.set()
            self._state.connection_gone.set()
            if self._state.when_gone is not None:
                self._state.when_gone()

        async def run_asgi(self) -> None:
            """Serve it."""
            scope = self.scope
            if (proxies := self._state.proxies) is not None:
                path = scope["path"].removeprefix(scope["root_path"])
                believe(proxies, scope, self.config.root_path)
                scope["path"] = scope["root_path"] + path
            scope[CLIENT] = self
            await super().run_asgi()

    return DrainWebSocket
