"""The documentation: what is made from the code says what the code says, its Python is Python, its menu is whole."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from pooldrain_compare.harness.servers import GUNICORN, UVICORN, WAITRESS, Backend
from tests.docs.pages import DOCS, api_page, report_table
from tests.harness.service import Launcher

ROOT = DOCS.parent
PAGES = sorted(DOCS.rglob("*.md"))
MENU = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]


def in_menu(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    entries = entry.values() if isinstance(entry, dict) else entry
    assert not isinstance(entries, str | object.__class__)
    return [page for each in list(entries) for page in in_menu(each)]  # type: ignore[call-overload]  # a list or a view


def python_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def test_the_api_is_documented_as_it_is() -> None:
    told = (DOCS / "reference" / "api.md").read_text("utf-8")
    assert told == api_page(), "python -m tests.docs.pages writes it anew"


def test_the_report_is_documented_as_its_schema_says() -> None:
    told = (DOCS / "reference" / "report.md").read_text("utf-8")
    assert report_table() in told, "python -m tests.docs.pages writes it anew"


def test_every_page_is_in_the_menu() -> None:
    assert sorted(in_menu(MENU)) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_its_python_is_python(page: Path) -> None:
    for code in python_of(page):
        ast.parse(code)


@pytest.mark.parametrize(
    ("backend", "page", "app"),
    [
        (GUNICORN, "flask-sqlalchemy.md", "shop:create_app"),
        (WAITRESS, "flask-sqlalchemy.md", "shop:create_app"),
        (UVICORN, "fastapi-lifespan.md", "shop_api:app"),
    ],
    ids=["flask-sqlalchemy on gunicorn", "flask-sqlalchemy on waitress", "lifespan"],
)
def test_an_example_runs_as_it_stands(
    services: Launcher, tmp_path: Path, backend: Backend, page: str, app: str
) -> None:
    [code] = python_of(DOCS / "how-to" / page)
    assert code.startswith(f"# {app.partition(':')[0]}.py\n")
    (tmp_path / f"{app.partition(':')[0]}.py").write_text(code, "utf-8")
    service = services.start_users(backend, app, tmp_path)
    assert service.get("/answer").json == {"answer": 42}
    service.send_signal()
    assert service.ended().code == 0
    assert service.complaints == []
    assert {pool["pool"] for pool in service.report["pools"]} & {"default", "shop"}
