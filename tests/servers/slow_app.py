"""An application whose requests take time in ways that a server does not see, or make a lot to send: `create`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import flask

BIG = 8_000_000  # bytes: more than any socket's buffers take
PARTS = 200


def create() -> flask.Flask:
    app = flask.Flask(__name__)
    handle, path = tempfile.mkstemp()
    Path(path).unlink()
    os.truncate(handle, BIG)

    @app.get("/ok")
    def ok() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/sleep")
    def sleep() -> dict[str, bool]:
        time.sleep(float(flask.request.args["seconds"]))
        return {"ok": True}

    @app.post("/length")
    def length() -> dict[str, int]:
        return {"length": len(flask.request.get_data())}

    @app.get("/big")
    def big() -> bytes:
        return b"x" * BIG

    @app.get("/file")
    def file() -> flask.Response:
        return flask.send_file(os.fdopen(os.dup(handle), "rb"), mimetype="text/plain")

    @app.get("/parts")
    def parts() -> flask.Response:
        def body() -> Iterator[bytes]:
            for _ in range(PARTS):
                yield b"x" * (BIG // PARTS)

        return flask.Response(body())

    return app
