"""One log on stderr, in one format, that neither a fork nor a closed stderr can break."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace

import pytest

from pooldrain.in_flight import CURRENT_REQUEST, InFlightRequest
from pooldrain.phases import Phase
from pooldrain.runtime.output.logging import (
    ConsoleFormatter,
    JsonFormatter,
    StderrHandler,
    adopt_third_party,
    configure_logging,
    logs_json,
)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    logging.captureWarnings(False)
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def record(message: str, *args: object, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("pooldrain.test").makeRecord(
        "pooldrain.test", level, "file.py", 1, message, args, None, extra=extra
    )
    made.created = 1795410181.1239  # a moment with a fraction that must not be rounded up
    return made


HEADER = "import logging, os, sys\nfrom pooldrain.runtime.output.logging import configure_logging\n"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HEADER + code], capture_output=True, text=True, timeout=30, check=False
    )


# -- the two forms


def test_a_console_line_has_time_level_and_message() -> None:
    line = ConsoleFormatter().format(record("pool closed, %d left", 0))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.123 INFO  pool closed, 0 left", line)


def test_levels_line_up_and_only_a_terminal_sees_colour() -> None:
    plain, coloured = ConsoleFormatter(), ConsoleFormatter(colour=True)
    assert " WARN  late" in plain.format(record("late", level=logging.WARNING))
    assert " ERROR late" in plain.format(record("late", level=logging.ERROR))
    assert "\x1b[33mWARN \x1b[0m late" in coloured.format(record("late", level=logging.WARNING))
    assert "\x1b" not in coloured.format(record("on time"))


def test_no_part_of_a_message_can_pass_for_a_line_of_its_own() -> None:
    line = ConsoleFormatter().format(record("path %s", "/x\n2026-11-23 05:03:01.123 INFO  shutdown complete"))
    assert "\n" not in line
    assert "/x\\n2026" in line


def test_no_part_of_an_exceptions_text_can_either() -> None:
    made = record("failed")
    try:
        raise ValueError("x\n2026-11-23 05:03:01.123 INFO  all is well\x1b[2J")
    except ValueError:
        made.exc_info = sys.exc_info()
    console, as_json = ConsoleFormatter().format(made), json.loads(JsonFormatter().format(made))
    assert console.split("\n")[-1] == "  ValueError: x\\n2026-11-23 05:03:01.123 INFO  all is well\\x1b[2J"
    assert as_json["traceback"].split("\n")[-1] == "ValueError: x\\n2026-11-23 05:03:01.123 INFO  all is well\\x1b[2J"


def test_a_json_line_carries_the_events_fields() -> None:
    event = {"event": "listening", "host": "127.0.0.1", "port": 8000}
    line = json.loads(JsonFormatter().format(record("listening on %s", "port 8000", event=event)))
    assert datetime.fromisoformat(line.pop("time")).timestamp() == 1795410181.123
    assert line == {
        "level": "info",
        "event": "listening",
        "message": "listening on port 8000",
        "host": "127.0.0.1",
        "port": 8000,
    }
    assert event["event"] == "listening", "the caller's event was changed"


def test_a_json_line_without_an_event_names_its_logger() -> None:
    line = json.loads(JsonFormatter().format(record("数据库连接池")))
    assert (line["event"], line["logger"], line["message"]) == ("log", "pooldrain.test", "数据库连接池")


def test_an_events_field_cannot_replace_the_lines_own() -> None:
    event = {"event": "cut", "level": "mine", "route": object}
    line = json.loads(JsonFormatter().format(record("cut", event=event)))
    assert (line["level"], line["event"]) == ("info", "cut")
    assert "object" in line["route"]


def test_a_traceback_stays_within_its_record() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    assert "ValueError: broken" in json.loads(JsonFormatter().format(made))["traceback"]
    assert "\n  ValueError: broken" in ConsoleFormatter().format(made)


# -- configured


def test_records_go_to_stderr_from_the_level_up(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("console", "info")
    logging.getLogger("pooldrain.x").info("shown")
    logging.getLogger("pooldrain.x").debug("hidden")
    out, err = capfd.readouterr()
    assert out == ""
    assert "INFO  shown\n" in err
    assert "hidden" not in err


def test_the_last_configuration_counts(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "debug")
    assert logs_json()
    configure_logging("console", "info")
    assert not logs_json()
    logging.getLogger("pooldrain.x").info("once")
    assert capfd.readouterr().err.count("once") == 1


@pytest.mark.parametrize("name", ["gunicorn.error", "uvicorn.access", "waitress", "sqlalchemy.pool", "asyncio"])
def test_others_are_heard_from_warning_up_in_our_format(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    theirs = logging.getLogger(name)
    configure_logging("console", "info")
    theirs.addHandler(logging.StreamHandler(sys.stderr))  # as gunicorn does once it starts
    theirs.setLevel(logging.INFO)
    theirs.propagate = False
    adopt_third_party()
    theirs.info("chatter")
    theirs.warning("trouble")
    err = capfd.readouterr().err
    assert "chatter" not in err
    assert err.count("trouble") == 1
    assert "WARN  trouble\n" in err


def test_at_level_debug_others_are_heard_in_full(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("console", "debug")
    logging.getLogger("uvicorn.error").debug("detail")
    configure_logging("console", "error")
    logging.getLogger("uvicorn.error").warning("trouble")
    err = capfd.readouterr().err
    assert "DEBUG detail" in err
    assert "trouble" not in err


def test_a_python_warning_is_a_record_too(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)  # within catch_warnings, which keeps the function that shows them
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    line = json.loads(capfd.readouterr().err)
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")


def test_a_log_call_with_wrong_arguments_is_logged_and_raises_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    StderrHandler(2, ConsoleFormatter()).handle(record("%d connections", "ten"))
    err = capfd.readouterr().err
    assert "'%d connections', which cannot be formatted" in err
    assert "Traceback" not in err


def test_text_that_is_not_unicode_is_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    StderrHandler(2, ConsoleFormatter()).handle(record("path \udcff"))
    assert "path \\udcff" in capfd.readouterr().err


# -- in the process's bad hours


def test_a_broken_stderr_loses_the_line_and_nothing_else() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    handler = StderrHandler(writer, ConsoleFormatter())
    handler.handle(record("into a pipe that nobody reads"))
    os.close(writer)
    handler.handle(record("into a descriptor that is closed"))


def test_a_process_started_without_stderr_writes_to_nobodys_descriptor() -> None:
    code = """
taken = os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else 0
configure_logging("console", "info")
logging.getLogger("pooldrain").error("nobody hears this")
print(taken)
"""
    program = [sys.executable, "-c", "import os, sys; os.close(2); os.execv(sys.executable, sys.argv[1:])"]
    command = [*program, sys.executable, "-c", HEADER + code]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=30, check=True)
    assert done.stdout == b"2\n", "number 2 was taken by a file, and the log did not go there"


def test_a_child_forked_while_another_thread_logs_can_log() -> None:
    done = run("""
import threading, warnings
warnings.simplefilter("ignore")  # Python 3.12 and later warn of what is tried here
configure_logging("console", "info")
log = logging.getLogger("pooldrain")
stop = threading.Event()
def chatter():
    while not stop.is_set():
        log.info("parent")
thread = threading.Thread(target=chatter)
thread.start()
children = []
for number in range(20):
    child = os.fork()
    if child == 0:
        log.info("child %d", number)
        os._exit(0)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
stop.set()
thread.join()
print(codes.count(0))
""")
    assert done.stdout == "20\n"
    lines = done.stderr.splitlines()
    assert sum("INFO  child" in line for line in lines) == 20
    assert all(re.fullmatch(r"\S+ \S+ INFO  (parent|child \d+)", line) for line in lines), "lines were mixed"


def test_colour_is_for_terminals_that_want_it() -> None:
    code = 'configure_logging("console", "info")\nlogging.getLogger("pooldrain").warning("late")\n'
    assert seen_on_a_terminal(code, {}).count("\x1b[33mWARN") == 1
    assert "\x1b" not in seen_on_a_terminal(code, {"NO_COLOR": "1"})
    assert "\x1b" not in run(code).stderr


def seen_on_a_terminal(code: str, environ: dict[str, str]) -> str:
    ours, theirs = os.openpty()
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | environ
    subprocess.run([sys.executable, "-c", HEADER + code], stderr=theirs, env=env, timeout=30, check=True)
    os.close(theirs)
    try:
        return os.read(ours, 10_000).decode()
    finally:
        os.close(ours)


def test_a_json_line_says_in_which_phase_and_for_which_request_it_was_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pooldrain.current._runner", SimpleNamespace(phase=Phase.DRAINING))
    token = CURRENT_REQUEST.set(InFlightRequest("GET", "/", "the-id", 0.0))
    try:
        line = json.loads(JsonFormatter().format(record("hello")))
        told = json.loads(JsonFormatter().format(record("hello", event={"event": "phase", "phase": "CLOSED"})))
    finally:
        CURRENT_REQUEST.reset(token)
    assert (line["phase"], line["request_id"]) == ("DRAINING", "the-id")
    assert told["phase"] == "CLOSED", "an event's own field comes first"
    assert list(json.loads(JsonFormatter().format(record("hello")))) == [
        "time",
        "level",
        "event",
        "message",
        "logger",
        "phase",
    ]
