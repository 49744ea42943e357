"""The event loop that a service of the async backend runs on."""

from __future__ import annotations

import asyncio
import sys

import pytest
import uvloop

from pooldrain_async.loops import new_loop


def kind_of(name: str) -> type[asyncio.AbstractEventLoop]:
    loop = new_loop(name)  # type: ignore[arg-type]  # one of the names
    loop.close()
    return type(loop)


def test_it_is_the_one_that_is_named() -> None:
    assert kind_of("uvloop") is uvloop.Loop
    assert kind_of("asyncio") is asyncio.SelectorEventLoop


def test_auto_is_uvloop_where_it_is_installed_and_asyncio_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind_of("auto") is uvloop.Loop
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert kind_of("auto") is kind_of("asyncio")
    with pytest.raises(ModuleNotFoundError):
        kind_of("uvloop")
