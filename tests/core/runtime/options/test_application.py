"""The user's application is found by its name, told by its signature, and blamed for its own errors only."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pooldrain.errors import ConfigurationError
from pooldrain.runtime.options.application import (
    ApplicationError,
    AppName,
    Kind,
    Loaded,
    check_application,
    load_application,
    parse_app,
    takes_runner,
)
from pooldrain.servers import Backend

SHOP = '''
"""A shop."""

class Asgi:
    async def __call__(self, scope, receive, send): ...

class Wsgi:
    def __call__(self, environ, start_response): ...

class Deep:
    app = Wsgi()

wsgi = app = Wsgi()
asgi = Asgi()
deep = Deep()
anything = lambda *arguments: None
number = 42

def function_of_wsgi(environ, start_response): ...
async def function_of_asgi(scope, receive, send): ...
def create_app(): return wsgi
def create_asgi(): return asgi
def create_from(runner): return ("from", runner)
def create_with(name, debug=False): return (name, debug)
def nothing(): return None
def failing(): return 1 / 0
'''


@pytest.fixture(name="place")
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wonderful_shop.py").write_text(SHOP, "utf-8")
    monkeypatch.delitem(sys.modules, "wonderful_shop", raising=False)
    return tmp_path


def found(text: str, place: Path, backend: Backend = "sync", *, factory: bool = False) -> Loaded:
    return load_application(parse_app(text), backend, factory=factory, directory=place)


# -- names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("shop", AppName("shop", "shop", None)),
        ("shop.web:app", AppName("shop.web:app", "shop.web", "app")),
        ("shop:site.app", AppName("shop:site.app", "shop", "site.app")),
        (" shop:create_app() ", AppName("shop:create_app()", "shop", "create_app", True)),
        (
            "shop:create_app('live', debug=True)",
            AppName("shop:create_app('live', debug=True)", "shop", "create_app", True, ("live",), (("debug", True),)),
        ),
    ],
)
def test_a_name_says_where_the_application_is(text: str, name: AppName) -> None:
    assert parse_app(text) == name


@pytest.mark.parametrize(
    "text", ["", ":app", "shop:", "shop web:app", "shop:app[0]", "shop:create(x)", "shop:a:b", "shop:1", "sh-op:app"]
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must (be MODULE|have literal arguments)"):
        parse_app(text)


def test_a_database_url_in_its_place_is_not_quoted() -> None:
    with pytest.raises(ConfigurationError, match="goes after --database-url") as refusal:
        parse_app("postgresql://user:geheim@host/name")
    assert "geheim" not in str(refusal.value)


# -- what a name stands for


@pytest.mark.parametrize(
    ("attribute", "backend", "kind"),
    [
        ("wsgi", "sync", Kind.APPLICATION),
        ("function_of_wsgi", "sync", Kind.APPLICATION),
        ("deep.app", "sync", Kind.APPLICATION),
        ("asgi", "async", Kind.APPLICATION),
        ("function_of_asgi", "async", Kind.APPLICATION),
        ("anything", "sync", Kind.APPLICATION),
        ("anything", "async", Kind.APPLICATION),
        ("create_app", "sync", Kind.FACTORY),
        ("create_from", "async", Kind.RUNNER_FACTORY),
        ("create_with('a')", "sync", Kind.FACTORY),
    ],
)
def test_it_is_told_by_its_signature(place: Path, attribute: str, backend: Backend, kind: Kind) -> None:
    assert found(f"wonderful_shop:{attribute}", place, backend).kind is kind


def test_a_module_alone_has_its_application_under_a_usual_name(place: Path) -> None:
    assert found("wonderful_shop", place).value is sys.modules["wonderful_shop"].app


def test_a_factory_may_be_called_one(place: Path) -> None:
    assert found("wonderful_shop:create_with", place, factory=True).kind is Kind.RUNNER_FACTORY
    assert found("wonderful_shop:anything", place, factory=True).kind is Kind.FACTORY


def test_each_kind_makes_its_application(place: Path) -> None:
    assert found("wonderful_shop:wsgi", place).make("runner") is sys.modules["wonderful_shop"].wsgi
    assert found("wonderful_shop:create_app", place).make("runner") is sys.modules["wonderful_shop"].wsgi
    assert found("wonderful_shop:create_from", place).make("runner") == ("from", "runner")
    assert found("wonderful_shop:create_with('live', debug=True)", place).make("runner") == ("live", True)


# -- what is refused


@pytest.mark.parametrize(
    ("text", "backend", "message"),
    [
        ("no_such_shop:app", "sync", "there is no module no_such_shop, neither in "),
        ("wonderful_shop.web:app", "sync", "there is no module wonderful_shop.web, neither in "),
        ("wonderful_shop:wsgy", "sync", "has no attribute wsgy; did you mean wsgi?"),
        ("wonderful_shop:number", "sync", "is an int, and no application: it cannot be called"),
        ("wonderful_shop:asgi", "sync", "is an ASGI application; serve it with pooldrain-async wonderful_shop:asgi"),
        ("wonderful_shop:wsgi", "async", "is a WSGI application; serve it with pooldrain-sync wonderful_shop:wsgi"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(place: Path, text: str, backend: Backend, message: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        found(text, place, backend)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("create_asgi", "is an ASGI application; serve it with pooldrain-async wonderful_shop:create_asgi"),
        ("nothing", "the factory wonderful_shop:nothing returned None, and no application"),
        ("create_with('a')", "returned a tuple, and no application"),
    ],
)
def test_what_a_factory_makes_is_looked_at_as_well(place: Path, factory: str, message: str) -> None:
    loaded = found(f"wonderful_shop:{factory}", place)
    with pytest.raises(ConfigurationError) as refusal:
        check_application(loaded.make(None), loaded.name, "sync")
    assert message in str(refusal.value)


# -- the user's own errors


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ny = 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import surely_not_there\n", "No module named 'surely_not_there'"),
        ("def broken(:\n", "SyntaxError"),
        ("raise ImportError('half')\n", "ImportError: half"),
    ],
)
def test_a_module_that_fails_is_shown_from_its_own_first_line_on(place: Path, source: str, message: str) -> None:
    (place / "broken_shop.py").write_text(source, "utf-8")
    sys.modules.pop("broken_shop", None)
    with pytest.raises(ApplicationError) as failure:
        found("broken_shop:app", place)
    assert str(failure.value).startswith("cannot import broken_shop: ")
    assert message in str(failure.value)
    shown = [line for line in failure.value.user_traceback if line.lstrip().startswith("File ")]
    assert "broken_shop.py" in shown[0], "none of ours, and none of importlib's"


def test_a_factory_that_fails_is_shown_as_well(place: Path) -> None:
    loaded = found("wonderful_shop:failing", place)
    with pytest.raises(
        ApplicationError, match="the factory wonderful_shop:failing failed: ZeroDivisionError"
    ) as failure:
        loaded.make(None)
    assert "in failing" in failure.value.user_traceback[1]


# -- a look without an import


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("wonderful_shop:create_from", True),
        ("wonderful_shop:create_app", False),
        ("wonderful_shop:create_with", True),  # one is required
        ("wonderful_shop:wsgi", False),
        ("wonderful_shop", False),  # its `app` comes first
        ("wonderful_shop:nowhere", False),
        ("no_such_shop:create", False),
    ],
)
def test_whether_a_factory_takes_the_runner_is_seen_without_importing_it(place: Path, text: str, takes: bool) -> None:
    assert takes_runner(parse_app(text), False, place) is takes
    assert "wonderful_shop" not in sys.modules


def test_what_cannot_be_read_takes_no_runner(place: Path) -> None:
    (place / "broken_shop.py").write_text("def broken(:\n", "utf-8")
    assert not takes_runner(parse_app("broken_shop:create"), False, place)


def test_a_package_is_found_as_well(place: Path) -> None:
    (place / "great_shop").mkdir()
    (place / "great_shop" / "__init__.py").write_text("def create_app(runner): ...\n", "utf-8")
    assert takes_runner(parse_app("great_shop"), False, place)
    assert takes_runner(parse_app("great_shop:create_app"), False, None)
