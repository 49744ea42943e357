"""The adapters and the pool patch internals: this fails loudly when the patched versions move.

When it does: read what changed in the methods below, adapt the module, run the tests under load, then move the
version here, in the module's first line and in pyproject.toml.
"""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

PATCHED = {
    "gunicorn": (
        "27.0.1",
        ["pooldrain.runtime.master", "pooldrain_sync.servers.gunicorn", "pooldrain_sync.servers.gunicorn_client"],
    ),
    "waitress": ("3.0.2", ["pooldrain_sync.servers.waitress"]),
    "uvicorn": ("0.54.0", ["pooldrain_async.servers.uvicorn", "pooldrain_async.servers.gunicorn"]),
    "sqlalchemy": ("2.1", ["pooldrain.pool", "pooldrain.queues"]),
}

# Each of our classes, and what it overrides: a method of another name there would never be called.
OVERRIDDEN = {
    "pooldrain.runtime.master:Master": (
        *("init_signals", "handle_term", "handle_int", "handle_quit", "halt", "stop", "reap_workers"),
        *("handle_hup", "handle_usr2", "manage_workers", "spawn_worker"),
    ),
    "pooldrain.runtime.worker:MasterApplication": ("load_config", "load"),
    "pooldrain.runtime.worker:ManagedWorker": ("init_signals",),
    "pooldrain_sync.servers.gunicorn:DrainWorker": (
        *("load_wsgi", "run", "accept", "enqueue_req", "handle", "handle_error", "finish_request"),
    ),
    "pooldrain_sync.servers.gunicorn_client:ClientSocket": ("recv", "sendall"),
    "pooldrain_sync.servers.gunicorn_client:DrainBody": ("_read_reader",),
    "pooldrain_sync.servers.gunicorn_client:DrainResponse": ("default_headers", "process_headers"),
    "pooldrain_async.servers.gunicorn:DrainWorker": ("load_wsgi", "run"),
    "pooldrain_async.servers.gunicorn:WorkerServer": ("_attend_signals", "_shut_down", "_accept_all"),
    "pooldrain_sync.servers.waitress:DrainParser": ("received",),
    "pooldrain_sync.servers.waitress:DrainErrorTask": ("execute",),
    "pooldrain_sync.servers.waitress:DrainTask": (
        *("execute", "get_environment", "set_close_on_finish", "build_response_header"),
    ),
    "pooldrain_sync.servers.waitress:DrainChannel": (
        *("service", "handle_read", "handle_close", "parser_class", "write_soon", "_flush_some"),
    ),
    "pooldrain_sync.servers.waitress:DrainServer": ("add_task",),
    "pooldrain_async.servers.uvicorn:DrainCycle": ("receive", "send_500_response"),
    "pooldrain_async.servers.uvicorn:DrainProtocol": (
        *("connection_made", "data_received", "connection_lost", "resume_writing"),
        *("_start_asgi_task", "on_headers_complete", "on_response_complete", "send_400_response"),
    ),
    "pooldrain_async.servers.uvicorn:UvicornServer": ("capture_signals",),
    "pooldrain.pool:ClosablePool": ("dispose", "recreate", "_do_get", "_do_return_conn"),
    "pooldrain.queues:ClosableQueue": ("get",),
    "pooldrain.pool:ClosableQueuePool": ("_queue_class",),
    "pooldrain.pool:ClosableAsyncQueuePool": ("_queue_class",),
}

# What is called or set over there without being overridden.
USED = {
    "gunicorn.workers.gthread:ThreadWorker": (
        *("set_accept_enabled", "wait_for_and_dispatch_events", "murder_keepalived", "murder_pending"),
        *("on_pending_socket_readable", "notify"),
    ),
    "gunicorn.workers.gthread:TConn": ("set_timeout", "close"),
    "gunicorn.workers.gthread:PollableMethodQueue": ("defer", "run_callbacks", "fileno"),
    "gunicorn.http.wsgi:Response": ("force_close",),
    "gunicorn.arbiter:Arbiter": ("run", "kill_workers", "kill_worker", "wait_for_signals", "signal"),
    "waitress.server:TcpWSGIServer": ("accept_connections", "pull_trigger", "set_socket_options", "accept"),
    "waitress.task:WSGITask": ("set_close_on_finish",),
    "waitress.task:ThreadedTaskDispatcher": ("set_thread_count", "add_task"),
    "waitress.wasyncore": ("poll2",),
    "waitress.channel:HTTPChannel": ("readable",),
    "uvicorn.server:Server": ("startup", "on_tick"),
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol": (
        *("timeout_keep_alive_handler", "_unset_keepalive_if_required"),
    ),
    "uvicorn.protocols.http.httptools_impl:RequestResponseCycle": ("run_asgi",),
    "sqlalchemy.pool.base:_ConnectionFairy": ("cursor", "dbapi_connection"),
    "sqlalchemy.pool.base:_ConnectionRecord": ("fairy_ref",),
    "sqlalchemy.events:DialectEvents": ("do_execute", "do_executemany", "do_execute_no_params"),
    "sqlalchemy.pool:QueuePool": ("_dec_overflow", "_inc_overflow", "checkedout", "overflow", "size"),
}

ROOT = Path(__file__).parents[2]


def lookup(name: str) -> object:
    module_name, _, attribute = name.partition(":")
    module = importlib.import_module(module_name)
    found: object = getattr(module, attribute) if attribute else module
    return found


@pytest.mark.parametrize("package", PATCHED)
def test_the_version_is_the_one_whose_internals_were_read(package: str) -> None:
    expected, modules = PATCHED[package]
    installed = version(package)
    assert installed == expected or installed.startswith(f"{expected}."), f"{modules} patch {package} {expected}"
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    every = [*pins["dependencies"], *(pin for extra in pins["optional-dependencies"].values() for pin in extra)]
    [pin] = {pin for pin in every if re.match(rf"{package}(?![\w-])", pin)}
    assert expected in pin
    assert re.search(r"==|,<", pin), f"{pin} lets other versions in"


@pytest.mark.parametrize("package", PATCHED)
def test_the_modules_that_patch_it_name_the_version(package: str) -> None:
    expected, modules = PATCHED[package]
    for name in modules:
        assert expected in (inspect.getdoc(importlib.import_module(name)) or ""), name


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_what_is_overridden_is_there(name: str) -> None:
    ours = lookup(name)
    assert inspect.isclass(ours)
    for method in OVERRIDDEN[name]:
        assert method in vars(ours), f"{name} does not override {method} any more: tell this test"
        assert any(method in vars(base) for base in ours.__mro__[1:]), f"no base of {name} has {method}"


@pytest.mark.parametrize("name", USED)
def test_what_is_used_is_there(name: str) -> None:
    theirs = lookup(name)
    assert [attribute for attribute in USED[name] if not hasattr(theirs, attribute)] == []
