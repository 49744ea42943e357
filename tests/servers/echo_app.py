"""Applications that answer with what they have seen of a request, without any framework."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from starlette.types import ASGIApp, Receive, Scope, Send


def create_sync(runner: Any) -> WSGIApplication:
    return _wsgi


def create_async(runner: Any) -> ASGIApp:
    return _asgi


def _wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    seen = {
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace"),
        "query": environ["QUERY_STRING"],
        "body": environ["wsgi.input"].read().decode("latin-1"),
        "host": environ.get("HTTP_HOST"),
        "scheme": environ["wsgi.url_scheme"],
        "client": environ["REMOTE_ADDR"],
        "root": environ["SCRIPT_NAME"],
        "server": [environ["SERVER_NAME"], int(environ["SERVER_PORT"])],
        "told": {key[5:].replace("_", "-").lower(): value for key, value in environ.items() if "HTTP_X_T" in key},
    }
    body = json.dumps(seen).encode()
    if seen["path"] == "/no-content":
        start_response("204 No Content", [])
        return []
    length = [] if seen["path"] == "/stream" else [("Content-Length", str(len(body)))]
    start_response("200 OK", [("Content-Type", "application/json"), *length])
    return [body[:10], body[10:]]


async def _asgi(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    told: dict[str, str] = {}
    for name, value in headers:
        if name.startswith("x-t"):
            told[name] = f"{told[name]},{value}" if name in told else value
    root = scope["root_path"]
    seen = {
        "method": scope["method"],
        "path": scope["path"].removeprefix(root),
        "query": scope["query_string"].decode("latin-1"),
        "body": b"".join(parts).decode("latin-1"),
        "host": dict(headers).get("host"),
        "scheme": scope["scheme"],
        "client": scope["client"][0] if scope["client"] else "",
        "root": root,
        "server": list(scope["server"] or ()),
        "told": told,
    }
    body = json.dumps(seen).encode()
    if seen["path"] == "/no-content":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    length = [] if seen["path"] == "/stream" else [(b"content-length", str(len(body)).encode())]
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), *length]}
    )
    await send({"type": "http.response.body", "body": body[:10], "more_body": True})
    await send({"type": "http.response.body", "body": body[10:]})
