"""The report file: written whole or not at all."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger("pooldrain")


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write `report` as JSON to `path`, by a rename. An error is logged: it must not change the exit code."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        logger.error("report: cannot write %s: %s", path, error.strerror)
