"""A missing piece is told in one line, by every command: an extra that is not installed, or a POSIX system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pooldrain.runtime.process.missing import explain_missing

# Runs a module as its command does, on a machine that lacks some packages, or is another kind of machine.
PROGRAM = """
import runpy, signal, sys
hidden, platform, module = sys.argv[1].split(","), sys.argv[2], sys.argv[3]
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Lacking())
if platform != sys.platform:
    sys.platform = platform
    for name in ("SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "pthread_sigmask", "siginterrupt"):
        delattr(signal, name)
sys.argv = sys.argv[3:]
runpy.run_module(module, run_name="__main__")
"""

MODULES = (
    "pooldrain_sync",
    "pooldrain_async",
    "pooldrain_compare",
    "pooldrain_compare.chaos",
    "pooldrain_compare.fuzz",
)


def run(module: str, *options: str, lacking: str = "", platform: str = sys.platform) -> tuple[int, str]:
    """The exit code, and what is said on stderr."""
    command = [sys.executable, "-c", PROGRAM, lacking, platform, module, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("module", "lacking", "options"),
    [
        ("pooldrain_sync", "flask", ()),
        ("pooldrain_sync", "flask", ("--server", "waitress")),
        ("pooldrain_sync", "gunicorn", ()),
        ("pooldrain_sync", "waitress", ("--server", "waitress")),
        ("pooldrain_async", "fastapi", ()),
        ("pooldrain_async", "starlette", ()),
        ("pooldrain_async", "uvicorn", ()),
        ("pooldrain_async", "httptools", ()),
        ("pooldrain_async", "aiosqlite", ()),
        ("pooldrain_async", "greenlet", ()),
        ("pooldrain_async", "gunicorn", ("--workers", "2")),
        ("pooldrain_async", "fastapi", ("--workers", "2")),
    ],
)
def test_a_backend_without_its_extra_says_which(
    tmp_path: Path, module: str, lacking: str, options: tuple[str, ...]
) -> None:
    url = f"sqlite:///{tmp_path / 'database'}"
    told = run(module, "--database-url", url, "--bind", "127.0.0.1:0", *options, lacking=lacking)
    colour = module.removeprefix("pooldrain_")
    line = f"pooldrain-{colour}: error: {lacking} is not installed; pip install 'pooldrain[{colour}]'\n"
    assert told == (1, line)


@pytest.mark.parametrize(
    ("module", "lacking", "options"),
    [
        ("pooldrain_compare", "rich", ("parity", "--scenario", "sigint")),
        ("pooldrain_compare", "psutil", ("parity", "--scenario", "sigint")),
        ("pooldrain_compare", "jinja2", ("report",)),
        ("pooldrain_compare", "rich", ("chaos",)),
        ("pooldrain_compare.chaos", "rich", ()),
        ("pooldrain_compare.fuzz", "rich", ()),
    ],
)
def test_the_suite_without_its_extra_says_which(module: str, lacking: str, options: tuple[str, ...]) -> None:
    program = module.partition(".")[0].replace("_", "-")
    line = f"{program}: {lacking} is not installed; pip install 'pooldrain[compare]'\n"
    assert run(module, *options, lacking=lacking) == (1, line)


@pytest.mark.parametrize("module", MODULES)
def test_on_windows_it_names_what_it_needs(module: str) -> None:
    program = module.partition(".")[0].replace("_", "-")
    told = run(module, "--help", platform="win32")
    assert told == (1, f"{program}: needs a POSIX system; on Windows run it in WSL\n")


LATE = "def create(runner):\n    import surely_not_installed\n"


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("import surely_not_installed\n", "cannot import lacking_app"),
        (LATE, "the factory lacking_app:create failed"),
    ],
    ids=["at its import", "in its factory"],
)
@pytest.mark.parametrize("module", ["pooldrain_sync", "pooldrain_async"])
def test_what_a_users_own_application_lacks_is_told_as_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str, where: str
) -> None:
    (tmp_path / "lacking_app.py").write_text(source, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    url = f"sqlite:///{tmp_path / 'database'}"
    code, said = run(module, "--bind", "127.0.0.1:0", "--database-url", url, "--app", "lacking_app:create")
    assert code == 1
    *traceback, last = said.splitlines()
    assert f"error: {where}: ModuleNotFoundError: No module named 'surely_not_installed'" in last
    assert "lacking_app.py" in traceback[1], "from the user's first line on, not ours"


def test_a_module_that_no_extra_brings_is_not_ours_to_explain() -> None:
    assert explain_missing(ModuleNotFoundError("No module named 'redis'", name="redis")) is None
