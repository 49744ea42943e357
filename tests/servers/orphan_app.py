"""An application whose requests start processes, and leave some of them without a parent."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

from fastapi import FastAPI
from flask import Flask

# A shell that ends at once, and leaves a process that ends a moment later.
LEAVE = ["sh", "-c", "sleep 0.05 &"]


def create_sync(runner: Any) -> Flask:
    app = Flask(__name__)

    @app.get("/leave")
    def leave() -> str:
        subprocess.run(LEAVE, check=True)
        return "left"

    @app.get("/environment")
    def environment() -> str:
        """What a child finds in its environment."""
        return subprocess.run(["env"], check=True, capture_output=True, text=True).stdout

    @app.get("/wait")
    def wait() -> str:
        """A child of its own that it waits for late."""
        child = subprocess.Popen(["sh", "-c", "exit 7"])
        subprocess.run(["sleep", "0.2"], check=True)
        return str(child.wait())

    return app


def create_async(runner: Any) -> FastAPI:
    app = FastAPI()

    @app.get("/leave")
    async def leave() -> str:
        await (await asyncio.create_subprocess_exec(*LEAVE)).wait()
        return "left"

    @app.get("/environment")
    async def environment() -> str:
        child = await asyncio.create_subprocess_exec("env", stdout=asyncio.subprocess.PIPE)
        return (await child.communicate())[0].decode()

    @app.get("/wait")
    async def wait() -> int:
        child = await asyncio.create_subprocess_exec("sh", "-c", "exit 7")
        await asyncio.sleep(0.2)
        return await child.wait()

    return app
