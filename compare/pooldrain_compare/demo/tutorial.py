"""The tutorial's walkthrough, with its printed outputs, taken literally."""

from __future__ import annotations

import http.client
from dataclasses import dataclass

from pooldrain_compare.harness.http import header_lines

LEAKS = 5

_AFTER_START = """\
{
  "message": "数据库连接池优雅关闭示例",
  "pool_status": {
    "pool_size": 10,
    "checkedout": 0,
    "overflow": 0,
    "idle": 10
  }
}
"""
_DB_TEST = """\
{
  "status": "success",
  "result": 1,
  "pool_status": {
    "pool_size": 10,
    "checkedout": 0,
    "overflow": 0,
    "idle": 10
  }
}
"""
_DB_TEST_LEAK = """\
{
  "status": "success",
  "result": 1,
  "pool_status": {
    "pool_size": 10,
    "checkedout": 5,
    "overflow": 0,
    "idle": 5
  },
  "warning": "这个端点会导致连接泄漏！"
}
"""
_POOL_STATUS = """\
{
  "pool_status": {
    "pool_size": 10,
    "checkedout": 5,
    "overflow": 0,
    "idle": 5
  },
  "connection_leak": true,
  "requests": {
    "accepting": true,
    "active": 0
  }
}
"""

# Paths in the order of the tutorial, each with how often it is asked and what the last answer has to be.
STEPS = (
    ("/", 1, _AFTER_START),
    ("/db-test", 1, _DB_TEST),
    ("/db-test-leak", LEAKS, _DB_TEST_LEAK),
    ("/pool-status", 1, _POOL_STATUS),
)
COUNTED_REQUESTS = sum(times for path, times, _ in STEPS if path != "/pool-status")


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of the walkthrough."""

    path: str
    status: int
    headers: tuple[tuple[str, str], ...]  # without Date and Server
    body: str
    expected: str | None  # the printed text; None where the tutorial prints nothing

    @property
    def as_printed(self) -> bool:
        """Whether the tutorial prints exactly this."""
        return self.status == 200 and self.expected in (None, self.body)


def walk(address: tuple[str, int], timeout: float = 10.0) -> list[Page]:
    """Take the steps before the signal, on a new connection each, as the tutorial's `curl` does."""
    return [
        _get(address, path, printed if number == times else None, timeout)
        for path, times, printed in STEPS
        for number in range(1, times + 1)
    ]


def _get(address: tuple[str, int], path: str, expected: str | None, timeout: float) -> Page:
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode("utf-8")
        head = "".join(f"\r\n{name}: {value}" for name, value in response.getheaders())
        return Page(path, response.status, header_lines(head.encode("latin-1")), body, expected)
    finally:
        connection.close()
