"""What clients and databases say is text in the log, and nothing else."""

from __future__ import annotations

from pooldrain_compare.harness.servers import Backend
from tests.harness.service import Launcher
from tests.servers import faulty_app


def test_text_from_outside_reaches_the_log_escaped(services: Launcher, backend: Backend) -> None:
    service = services.start_app(backend, faulty_app.__name__)
    assert service.get("/raise").status == 500
    service.get("/%0AERROR%20forged%1B[31m")
    service.send_signal()
    assert service.ended().code == 0
    lines = service.process.log.read_bytes().decode()
    assert all(line.isprintable() for line in lines.split("\n"))
    [complaint] = service.complaints
    assert complaint.split("\n")[-1] == "ValueError: first\\nERROR forged \\x1b[31m\\x9b1m\\u2028end"
