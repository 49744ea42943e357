"""Servers that lose requests are refused at the start."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

import pytest

from pooldrain.errors import StartupError
from pooldrain.runtime.process import versions


def answering(installed: str) -> Callable[[str], str]:
    def version(name: str) -> str:
        return installed

    return version


@pytest.mark.parametrize(
    ("package", "installed", "told"),
    [
        ("gunicorn", "25.3.0", "gunicorn 25.3.0 answers requests in flight 503, or resets them, at a shutdown; "),
        ("waitress", "2.1.2", "waitress 2.1.2 disconnects requests in flight at a shutdown; "),
        ("uvicorn", "0.29.0", "uvicorn 0.29.0 was not tried; pip install 'uvicorn>=0.30'"),
    ],
)
def test_a_version_that_loses_requests_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, package: str, installed: str, told: str
) -> None:
    monkeypatch.setattr(versions, "version", answering(installed))
    with pytest.raises(StartupError) as refusal:
        versions.require_version(package)
    assert str(refusal.value).startswith(told)


@pytest.mark.parametrize(
    ("package", "installed"),
    [("gunicorn", "26.2.0"), ("gunicorn", "27.0.1"), ("waitress", "3.0.1"), ("uvicorn", "0.30")],
)
def test_others_are_taken(monkeypatch: pytest.MonkeyPatch, package: str, installed: str) -> None:
    monkeypatch.setattr(versions, "version", answering(installed))
    versions.require_version(package)


def test_one_that_is_missing_is_told_by_its_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", missing)
    versions.require_version("gunicorn")
