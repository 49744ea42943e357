"""What trusted proxies say, in the words of ASGI."""

from __future__ import annotations

from typing import Any

from pooldrain.proxies import TrustedProxies
from pooldrain_async.websocket import address_of


def believe(proxies: TrustedProxies, scope: Any, root_path: str) -> None:
    """What a trusted proxy has said of a request takes the place of what its connection says."""
    headers = scope["headers"]
    told = proxies.forwarded(
        address_of(scope),
        lambda name: [value.decode("latin-1") for each, value in headers if each == name.encode("latin-1")],
    )
    if told.client is not None:
        scope["client"] = told.client
    if told.scheme is not None:
        scope["scheme"] = told.scheme.replace("http", "ws") if scope["type"] == "websocket" else told.scheme
    if told.host is not None:
        headers[:] = [(b"host", told.host.encode()), *(each for each in headers if each[0] != b"host")]
    scope["root_path"] = root_path if told.prefix is None else told.prefix
