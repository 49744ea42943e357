"""The access log: a line for each request that has ended, however it did. Probes are not logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from pooldrain.printable import printable

AccessForm = Literal["off", "common", "json"]
Outcome = Literal["served", "refused", "cut"]


@dataclass(frozen=True, slots=True)
class Access:
    """One request, as the access log tells of it. Its query is left out: it may carry secrets."""

    client: str  # its address, empty over a Unix socket
    method: str
    path: str
    status: int | None  # None: no answer
    sent: int  # bytes of the answer's body
    seconds: float
    request_id: str
    outcome: Outcome

    def common(self, moment: datetime) -> str:
        """In the Common Log Format (Apache's `%h %l %u %t "%r" %>s %b`), and id, seconds, outcome behind it."""
        line = printable(f"{self.method} {self.path}").replace('"', '\\"')
        status = "-" if self.status is None else self.status
        return (
            f'{self.client or "-"} - - [{moment:%d/%b/%Y:%H:%M:%S %z}] "{line} HTTP/1.1" {status} {self.sent or "-"} '
            f"{self.request_id} {self.seconds:.6f} {self.outcome}"
        )

    def as_dict(self, moment: datetime) -> dict[str, Any]:
        """JSON-ready."""
        return {"time": moment.isoformat(timespec="milliseconds"), **asdict(self), "path": printable(self.path)}


AccessSink = Callable[[Access], None]
