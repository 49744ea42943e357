"""The README's own applications: pasted as they stand, started as it says, they answer what it prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pooldrain_compare.harness.servers import GUNICORN, UVICORN, Backend
from tests.harness.service import Launcher

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


def pasted(name: str) -> str:
    """The code block that begins with the name of its file."""
    [code] = re.findall(rf"```python\n(# {re.escape(name)}\n.*?)```", README, re.DOTALL)
    assert isinstance(code, str)
    return code


@pytest.mark.parametrize(
    ("backend", "name"), [(GUNICORN, "shop.py"), (UVICORN, "shop_async.py")], ids=["flask", "fastapi"]
)
def test_the_example_runs_as_it_stands(
    services: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend, name: str
) -> None:
    (tmp_path / name).write_text(pasted(name), "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    app = f"{name.removesuffix('.py')}:create_app"
    command = f"$ {backend.module.replace('_', '-')} --app {app}\n$ curl http://127.0.0.1:8000/answer\n"
    printed = README.partition(command)[2].partition("\n")[0]
    service = services.start(backend, "--app", app)
    assert service.get("/answer").json == json.loads(printed) == {"answer": 42}
    service.send_signal()
    assert service.ended().code == 0
    assert service.complaints == []


def test_no_package_is_promised_that_is_not_there() -> None:
    assert not re.findall(r"pip install '?pooldrain", README)
