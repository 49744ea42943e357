"""Samples, their summary, and the file they are kept in."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("sqlalchemy", "psycopg", "gunicorn", "waitress", "uvicorn", "flask", "fastapi")
DEFAULT_DIRECTORY = Path(".pooldrain") / "bench"


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, least and greatest of some samples."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Summarise; raises StatisticsError when there is no sample."""
        return cls(statistics.median(samples), min(samples), max(samples))

    def text(self, form: str = "{:.1f}") -> str:
        """`1.5 (1.2-2.0)`."""
        return f"{form.format(self.median)} ({form.format(self.least)}-{form.format(self.greatest)})"


def write_json(path: Path, benchmark: str, parameters: dict[str, Any], samples: Any) -> None:
    """Write parameters, versions and every single sample, so that a report can be drawn from the file alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": benchmark,
        "parameters": parameters,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "versions": {package: version(package) for package in _PACKAGES},
        "samples": samples,
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
