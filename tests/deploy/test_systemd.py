"""The units of `deploy/`: systemd understands them, they allow what a shutdown takes, and the docs show them."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pooldrain.exit_codes import ExitCode
from pooldrain.policy import ShutdownPolicy

ROOT = Path(__file__).parents[2]
UNITS = ("pooldrain@.socket", "pooldrain@.service")
ANALYZE = shutil.which("systemd-analyze")


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as configparser's own documentation does it
    parser.read_string((ROOT / "deploy" / name).read_text("utf-8"))
    return parser


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze here")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    assert ANALYZE is not None
    for name in UNITS:
        text = (ROOT / "deploy" / name).read_text("utf-8").replace("/srv/%i/.venv/bin/pooldrain-sync", sys.executable)
        (tmp_path / name.replace("@", "@shop")).write_text(text, "utf-8")
    paths = [str(tmp_path / name.replace("@", "@shop")) for name in UNITS]
    environment = {"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [ANALYZE, "verify", "--man=no", *paths], capture_output=True, text=True, env=environment, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "pooldrain@" in line]
    assert not ours


def test_systemd_waits_as_long_as_a_shutdown_may_take() -> None:
    service = unit("pooldrain@.service")["Service"]
    assert int(service["TimeoutStopSec"]) == ShutdownPolicy().ladder.termination_grace_period


def test_what_would_fail_again_is_not_started_again() -> None:
    codes = unit("pooldrain@.service")["Service"]["RestartPreventExitStatus"].split()
    assert codes == [str(int(code)) for code in (ExitCode.BAD_CONFIGURATION, ExitCode.DOES_NOT_FIT)]


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_what_the_documentation_shows(name: str) -> None:
    shown = (ROOT / "docs" / "how-to" / "fleet.md").read_text("utf-8")
    assert f"```ini\n{(ROOT / 'deploy' / name).read_text('utf-8')}```" in shown
