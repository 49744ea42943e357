"""`--log-config`: the user's own file says what becomes of log records, on every server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pooldrain_compare.harness.processes import ServerProcess, python_module
from pooldrain_compare.harness.servers import EVERY_WAY, WAITRESS, Backend
from tests.harness.http import ask
from tests.harness.waiting import BOUND, eventually

CONFIG: dict[str, Any] = {
    "version": 1,
    "formatters": {
        "json": {"()": "pooldrain.runtime.output.logging.JsonFormatter"},
        "short": {"format": "<%(name)s> %(message)s"},
    },
    "handlers": {
        "file": {"class": "logging.FileHandler", "filename": "FILE", "formatter": "short"},
        "stderr": {"class": "logging.StreamHandler", "formatter": "json"},
    },
    "root": {"level": "INFO", "handlers": ["file", "stderr"]},
}


def process(backend: Backend, url: str, tmp_path: Path, config: Path, *options: str) -> ServerProcess:
    command = python_module(backend.module, *backend.options, "--bind", "127.0.0.1:0", "--log-config", str(config))
    return ServerProcess([*command, *options], log=tmp_path / "log", environment={"POOLDRAIN_DATABASE_URL": url})


@pytest.mark.parametrize("backend", EVERY_WAY, ids=lambda backend: backend.name)
def test_records_go_where_the_file_says_and_nowhere_else(database_url: str, tmp_path: Path, backend: Backend) -> None:
    config, file = tmp_path / "log.json", tmp_path / "service.log"
    config.write_text(json.dumps(CONFIG).replace("FILE", str(file)), "utf-8")
    with process(backend, database_url, tmp_path, config) as service:
        eventually(lambda: "listening on" in file.read_text("utf-8"), "it is in the file")
        assert ask(service.address, "GET", "/db-test-leak").status == 200
        service.signal()
        assert service.wait(BOUND).code == 0
    lines = file.read_text("utf-8").splitlines()
    assert any(line.startswith("<pooldrain> leak (unreturned): connection held by GET /db-test-leak") for line in lines)
    assert all(line.startswith("<") for line in lines)
    told = [json.loads(line) for line in (tmp_path / "log").read_text("utf-8").splitlines()]
    assert len(told) == len(lines), "each record once in each place"
    assert told[-1]["phase"] == "CLOSED" or backend.workers > 1


def test_an_ini_file_will_do(database_url: str, tmp_path: Path) -> None:
    config = tmp_path / "log.ini"
    config.write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=stderr\n[formatters]\nkeys=json\n"
        "[logger_root]\nlevel=INFO\nhandlers=stderr\n"
        "[handler_stderr]\nclass=StreamHandler\nformatter=json\nargs=()\n"
        "[formatter_json]\nclass=pooldrain.runtime.output.logging.JsonFormatter\n",
        "utf-8",
    )
    with process(WAITRESS, database_url, tmp_path, config) as service:
        service.signal()
        assert service.wait(BOUND).code == 0
    assert all(json.loads(line) for line in (tmp_path / "log").read_text("utf-8").splitlines())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "JSONDecodeError"),
        (
            '{"version": 1, "handlers": {"h": {"class": "no.such.Handler"}}}',
            "ValueError: Cannot resolve 'no.such.Handler'",
        ),
        ("nothing of the kind", ""),
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_one_line(
    database_url: str, tmp_path: Path, text: str, reason: str
) -> None:
    config = tmp_path / "log.json"
    config.write_text(text, "utf-8")
    service = process(WAITRESS, database_url, tmp_path, config)
    service._awaited = False
    with service:
        assert service.wait(BOUND).code == 2
    [line] = (tmp_path / "log").read_text("utf-8").splitlines()
    assert line.startswith(f"pooldrain-sync: error: --log-config {config}: {reason}")


def test_a_format_beside_it_would_have_no_effect_and_is_refused(database_url: str, tmp_path: Path) -> None:
    config = tmp_path / "log.json"
    config.write_text(json.dumps(CONFIG), "utf-8")
    service = process(WAITRESS, database_url, tmp_path, config, "--log-level", "debug")
    service._awaited = False
    with service:
        assert service.wait(BOUND).code == 2
    [line] = (tmp_path / "log").read_text("utf-8").splitlines()
    assert line == "pooldrain-sync: error: --log-level has no effect beside --log-config; drop one of them"
