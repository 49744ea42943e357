"""One request, and how long a server may take for it, or for its end."""

from __future__ import annotations

import http.client

END_TIMEOUT = 60.0


def ask(address: tuple[str, int], target: str, timeout: float = END_TIMEOUT) -> bytes:
    """One request on a connection of its own; the body of the answer. TimeoutError when it does not come."""
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        connection.request("GET", target, headers={"Connection": "close"})
        return connection.getresponse().read()
    finally:
        connection.close()
