"""Finds the user's application by its name, as other servers do: `shop.web:app`, a factory, a module.

What a name stands for is told by its signature: nothing required is a factory, one parameter a factory that takes the
runner, two are WSGI (PEP 3333), three are ASGI.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

from pooldrain.errors import ConfigurationError, StartupError, describe_error
from pooldrain.printable import printable, traceback_lines
from pooldrain.servers import Backend

# What a module's application or factory is called, where its name says nothing; the first one wins.
USUAL_NAMES = ("app", "application", "create_app", "make_app")

_PROTOCOLS: dict[int, tuple[str, Backend]] = {2: ("a WSGI", "sync"), 3: ("an ASGI", "async")}


class ApplicationError(StartupError):
    """The user's own code has failed. `user_traceback`: the lines of its traceback, from the user's first one on."""

    def __init__(self, message: str, user_traceback: list[str]) -> None:
        super().__init__(message)
        self.user_traceback = user_traceback


@dataclass(frozen=True, slots=True)
class AppName:
    """Where an application is: MODULE, MODULE:ATTRIBUTE or MODULE:FACTORY(ARGUMENTS)."""

    text: str
    module: str
    attribute: str | None  # None: one of USUAL_NAMES
    called: bool = False  # with these arguments
    arguments: tuple[Any, ...] = ()
    keywords: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.text


def parse_app(text: str) -> AppName:
    """The name of an application. Raises ValueError, which says what it must be."""
    name = text.strip()
    if "://" in name:  # which may have a password
        raise ConfigurationError("is no application; a database URL goes after --database-url")
    module, colon, rest = name.partition(":")
    problem = ValueError("must be MODULE, MODULE:ATTRIBUTE or MODULE:FACTORY(...), as in shop.web:app")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", module) or (colon and not rest):
        raise problem
    if not colon:
        return AppName(name, module, None)
    try:
        expression = ast.parse(rest, mode="eval").body
    except (SyntaxError, ValueError):
        raise problem from None
    if not isinstance(expression, ast.Call):
        return AppName(name, module, _dotted(expression, problem))
    attribute = _dotted(expression.func, problem)
    try:
        arguments = tuple(map(ast.literal_eval, expression.args))
        keywords = tuple((word.arg or "", ast.literal_eval(word.value)) for word in expression.keywords)
    except (ValueError, TypeError):
        raise ValueError("must have literal arguments, as in shop.web:create_app('production')") from None
    if any(not word for word, _ in keywords):
        raise problem
    return AppName(name, module, attribute, True, arguments, keywords)


def _dotted(expression: ast.expr, problem: ValueError) -> str:
    if not all(isinstance(part, ast.Name | ast.Attribute | ast.Load) for part in ast.walk(expression)):
        raise problem
    return ast.unparse(expression)


class Kind(StrEnum):
    """What a name stands for."""

    APPLICATION = "application"
    FACTORY = "factory"
    RUNNER_FACTORY = "factory that takes the runner"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a name stands for, found."""

    kind: Kind
    value: Any
    name: AppName

    def make(self, runner: Any) -> Any:
        """The application. Raises ApplicationError if its factory fails, ConfigurationError for its arguments."""
        if self.kind is Kind.APPLICATION:
            return self.value
        arguments = (runner,) if self.kind is Kind.RUNNER_FACTORY else self.name.arguments
        with _users_fault(f"the factory {self.name} failed"):
            return self.value(*arguments, **dict(self.name.keywords))


def load_application(name: AppName, backend: Backend, *, factory: bool, directory: Path | None) -> Loaded:
    """Import what `name` names, looking in `directory` first (None: the current one), and see what it is.

    `factory`: it is one, whatever its signature says. Raises ConfigurationError if it is not there or of another kind,
    ApplicationError if the user's own code fails.
    """
    place = "" if directory is None else str(directory)
    if place not in sys.path:
        sys.path.insert(0, place)
    module = _module(name, directory)
    value = _attribute(module, name)
    if not callable(value):
        raise ConfigurationError(f"{name} is {_article(type(value).__name__)}, and no application: it cannot be called")
    required = _required(value)
    if name.called or factory:
        return Loaded(Kind.RUNNER_FACTORY if factory and required == 1 else Kind.FACTORY, value, name)
    if required in (0, 1):
        return Loaded(Kind.RUNNER_FACTORY if required else Kind.FACTORY, value, name)
    _check_protocol(required, name, backend)
    return Loaded(Kind.APPLICATION, value, name)


def check_application(app: Any, name: AppName, backend: Backend) -> None:
    """Raise ConfigurationError if what `name` has led to is no application, or one of the other backend's."""
    if app is None:
        raise ConfigurationError(f"the factory {name} returned None, and no application")
    if not callable(app):
        raise ConfigurationError(f"the factory {name} returned {_article(type(app).__name__)}, and no application")
    _check_protocol(_required(app), name, backend)


def _check_protocol(required: int | None, name: AppName, backend: Backend) -> None:
    protocol, owner = _PROTOCOLS.get(required or 0, ("", backend))
    if owner != backend:
        raise ConfigurationError(f"{name} is {protocol} application; serve it with pooldrain-{owner} {name}")


def _article(kind: str) -> str:
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def _required(value: Any) -> int | None:
    """How many positional arguments a call needs; None if that cannot be told."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # made in C, say
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional if p.default is p.empty]
    open_ended = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return None if open_ended and not needed else len(needed)


def _module(name: AppName, directory: Path | None) -> ModuleType:
    try:
        with _users_fault(f"cannot import {name.module}", ImportError):
            return importlib.import_module(name.module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name.module}.".startswith(f"{error.name}."):
            where = Path.cwd() if directory is None else directory
            raise ConfigurationError(
                f"there is no module {error.name}, neither in {where} nor on Python's path; "
                f"name another directory with --app-dir"
            ) from None
        raise _error(f"cannot import {name.module}", error) from error
    except ImportError as error:
        raise _error(f"cannot import {name.module}", error) from error


def _attribute(module: ModuleType, name: AppName) -> Any:
    if name.attribute is None:
        found = next((usual for usual in USUAL_NAMES if hasattr(module, usual)), None)
        if found is None:
            raise ConfigurationError(
                f"{name.module} has none of {', '.join(USUAL_NAMES)}; say which: {name.module}:ATTRIBUTE"
            )
        return getattr(module, found)
    value: Any = module
    for part in name.attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            close = difflib.get_close_matches(part, [n for n in dir(value) if not n.startswith("_")], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigurationError(f"{name}: {name.module} has no attribute {name.attribute}{hint}") from None
    return value


class _users_fault:  # noqa: N801 - a context manager, used as a function
    """Turns what the user's code raises into an ApplicationError, but for `passed` and our own errors."""

    def __init__(self, what: str, *passed: type[Exception]) -> None:
        self._what = what
        self._passed = passed

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, (ConfigurationError, StartupError, *self._passed)):
            raise _error(self._what, error) from error


def _error(what: str, error: BaseException) -> ApplicationError:
    trace = error.__traceback__
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    if trace is None and isinstance(error, SyntaxError):  # of the module itself: it says where
        lines = [printable(line) for line in "".join(traceback.format_exception_only(error)).splitlines()]
    else:
        lines = list(traceback_lines(error.with_traceback(trace)))
    return ApplicationError(f"{what}: {describe_error(error)}", lines)


def _is_ours(file: str) -> bool:
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")


# --- without importing --------------------------------------------------------------------------------------


def takes_runner(name: AppName, factory: bool, directory: Path | None) -> bool:
    """Whether `name` is a factory that takes the runner, as far as its module's source says so at a glance.

    Nothing is imported: a master knows nothing of its workers' code. What cannot be told is False.
    """
    if name.called and not factory:
        return False
    for file in _sources(name.module, directory):
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return False
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        names = _bound_names(tree)
        wanted = name.attribute or next((usual for usual in USUAL_NAMES if usual in names), "")
        function = functions.get(wanted)
        if function is None:
            return False
        arguments = function.args
        return len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults) == 1
    return False


def _bound_names(tree: ast.Module) -> set[str]:
    """What a module's statements give a name to, at its top level."""
    bound: set[str] = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                bound.add(node.name)
            case ast.Import() | ast.ImportFrom():
                bound.update(alias.asname or alias.name for alias in node.names)
            case _:
                bound.update(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return bound


def _sources(module: str, directory: Path | None) -> Iterator[Path]:
    parts = module.split(".")
    for place in (directory or Path.cwd(), *map(Path, sys.path)):
        for file in (place.joinpath(*parts).with_suffix(".py"), place.joinpath(*parts, "__init__.py")):
            if file.is_file():
                yield file
