"""TLS: served, drained and refused as without; where a server speaks none, or what is no certificate, in one line."""

from __future__ import annotations

import http.client
import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from pooldrain.errors import ConfigurationError
from pooldrain.exit_codes import ExitCode
from pooldrain.runtime.tls import server_context
from pooldrain_compare.harness.servers import GUNICORN, GUNICORN_2, UVICORN, UVICORN_2, WAITRESS, Backend
from tests.harness.in_flight import Taken
from tests.harness.service import Launcher, Service
from tests.harness.waiting import BOUND
from tests.servers import echo_app, slow_app
from tests.servers.slow_app import BIG

every_way = pytest.mark.parametrize(
    "backend", [GUNICORN, GUNICORN_2, UVICORN, UVICORN_2], ids=lambda backend: backend.name
)
everywhere = pytest.mark.parametrize("backend", [GUNICORN, UVICORN], ids=lambda backend: backend.name)


@dataclass(frozen=True)
class Certificate:
    """A certificate of this machine's, its key, and who trusts it."""

    certfile: Path
    keyfile: Path
    client: ssl.SSLContext

    @property
    def options(self) -> tuple[str, ...]:
        """What tells a service of it."""
        return ("--certfile", str(self.certfile), "--keyfile", str(self.keyfile))

    def connect(self, service: Service) -> http.client.HTTPSConnection:
        """A client that trusts it."""
        return http.client.HTTPSConnection(*service.address, timeout=BOUND, context=self.client)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    for number, pem in enumerate(issued.cert_chain_pems):
        pem.write_to_path(directory / "certificate.pem", append=number > 0)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Certificate(directory / "certificate.pem", directory / "key.pem", client)


def status(connection: http.client.HTTPConnection, method: str, target: str, body: bytes | None = None) -> int:
    connection.request(method, target, body)
    answer = connection.getresponse()
    answer.read()
    return answer.status


@every_way
def test_a_service_that_speaks_tls_drains_as_one_that_does_not(
    services: Launcher, taken: Taken, backend: Backend, certificate: Certificate
) -> None:
    service = services.start(backend, *certificate.options)
    held, kept = certificate.connect(service), certificate.connect(service)
    held.request("POST", "/orders", taken.order().body)
    service.await_admitted(1)
    assert [status(kept, "GET", "/") for _ in range(3)] == [200, 200, 200]

    service.send_signal()
    service.await_drain()
    assert certificate_status(certificate, service) == 503
    taken.release()
    assert held.getresponse().status == 201

    assert service.ended().code == ExitCode.DRAINED
    assert service.report["requests"]["cut"] == 0
    assert not service.complaints
    kept.close()


def certificate_status(certificate: Certificate, service: Service) -> int:
    connection = certificate.connect(service)
    try:
        return status(connection, "GET", "/")
    finally:
        connection.close()


@everywhere
def test_the_application_sees_https(services: Launcher, backend: Backend, certificate: Certificate) -> None:
    service = services.start_app(backend, echo_app.__name__, *certificate.options)
    connection = certificate.connect(service)
    connection.request("POST", "/a", b"x" * 300_000)  # many records, of which the poller tells once
    seen = connection.getresponse().read()
    connection.close()
    assert b'"scheme": "https"' in seen
    assert seen.count(b"x") >= 300_000


def test_big_answers_and_files_are_encrypted_by_us_and_not_sent_by_the_kernel(
    services: Launcher, certificate: Certificate
) -> None:
    service = services.start(GUNICORN, "--app", f"{slow_app.__name__}:create()", *certificate.options)
    for target in ("/big", "/file"):
        connection = certificate.connect(service)
        connection.request("GET", target)
        assert len(connection.getresponse().read()) == BIG
        connection.close()


@everywhere
def test_who_does_not_speak_tls_harms_nobody(services: Launcher, backend: Backend, certificate: Certificate) -> None:
    service = services.start(backend, *certificate.options)
    plain, silent = service.connect(), service.connect()
    plain.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    silent.send(b"\x16\x03\x01")
    assert plain.everything().count(b"HTTP/1.1") == 0
    assert certificate_status(certificate, service) == 200
    service.send_signal()
    assert service.ended().code == ExitCode.DRAINED


def test_waitress_says_that_it_cannot(services: Launcher, certificate: Certificate) -> None:
    service = services.begin(WAITRESS, *certificate.options)
    assert service.ended().code == ExitCode.BAD_CONFIGURATION
    assert "--certfile: waitress speaks no TLS; use --server gunicorn, or a proxy in front of it" in "".join(
        service.process.log_lines()
    )


def test_a_certificate_that_is_none_is_told_in_one_line(tmp_path: Path, certificate: Certificate) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for certfile, keyfile in (
        (nonsense, None),
        (certificate.certfile, None),
        (certificate.certfile, nonsense),
        (certificate.keyfile, certificate.certfile),
        (certificate.certfile, tmp_path / "missing.pem"),
    ):
        with pytest.raises(ConfigurationError, match=r"^--certfile .*; give a certificate and its key in PEM") as told:
            server_context(certfile, keyfile)
        assert "\n" not in str(told.value)


def test_a_service_with_a_key_of_another_certificate_does_not_start(
    services: Launcher, tmp_path: Path, certificate: Certificate
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(other)
    service = services.begin(UVICORN, "--certfile", str(certificate.certfile), "--keyfile", str(other))
    assert service.ended().code == ExitCode.BAD_CONFIGURATION
    assert "Traceback" not in "".join(service.process.log_lines())
