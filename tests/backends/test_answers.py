"""Both shells answer the same bytes on all servers, whatever they are asked."""

from __future__ import annotations

import json

import pytest

from pooldrain_compare.harness.servers import SERVERS, Backend
from tests.conftest import PutInFlight
from tests.harness.http import Answer, Headers
from tests.harness.postgres import Postgres
from tests.harness.service import Launcher, Service

JSON = "application/json"
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def every(shared_services: Launcher, postgres: Postgres) -> list[Service]:
    """One service on each server, each with a database of its own, so that all see the same orders."""
    databases = {backend.name: postgres.new_database() for backend in SERVERS}

    def url(backend: Backend) -> str:
        return postgres.url_of(databases[backend.name])

    return shared_services.start_all(SERVERS, url=url)


def same(services: list[Service], method: str, target: str, body: bytes = b"", headers: Headers = ()) -> Answer:
    """Ask all the same, and return the answer that all give."""
    answers = {service.backend.name: service.ask(method, target, body, headers) for service in services}
    first, *others = answers.values()
    for other in others:
        assert other.comparable == first.comparable, answers
    assert len({answer.closes for answer in answers.values()}) == 1, answers
    return first


def expect(answer: Answer, status: int) -> None:
    """An answer with this status is of the form that the documentation promises."""
    assert answer.status == status
    assert answer.header("content-type") == (JSON if status < 300 else PROBLEM)
    if status >= 300 and answer.body:
        problem = answer.json
        assert list(problem) == ["type", "title", "status", "detail"]
        assert (problem["type"], problem["title"], problem["status"]) == ("about:blank", answer.reason, status)


def spelt(payload: object) -> bytes:
    return json.dumps(payload).encode()


ORDER = {"id": "o", "item": "notebook", "quantity": 1}


# -- what is there


@pytest.mark.parametrize(
    ("target", "keys"),
    [
        ("/", ["message", "pool_status"]),
        ("/db-test", ["status", "result", "pool_status"]),
        ("/pool-status", ["pool_status", "connection_leak", "requests"]),
        ("/pool-status?detail=0", ["pool_status", "connection_leak", "requests"]),
        ("/pool-status?detail=1", ["pool_status", "connection_leak", "requests", "phase", "checkouts", "leaks"]),
        ("/work?ms=0", ["status", "ms"]),
        ("/work?ms=20", ["status", "ms"]),
        ("/work?ms=%31", ["status", "ms"]),
        ("/orders/count", ["count"]),
        ("/livez", ["status"]),
        ("/readyz", ["status", "phase"]),
    ],
)
def test_every_route_answers_the_same_bytes(every: list[Service], target: str, keys: list[str]) -> None:
    answer = same(every, "GET", target)
    expect(answer, 200)
    assert list(answer.json) == keys
    assert answer.body.endswith(b"\n}\n")
    head = same(every, "HEAD", target)
    assert (head.status, head.body) == (200, b"")
    assert head.header("content-length") == str(len(answer.body))


# -- what is not there


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/nowhere", "/nowhere"),
        ("/nowhere?secret=1", "/nowhere"),
        ("/db-test/", "/db-test/"),
        ("/orders/", "/orders/"),
        ("/orders/a/b", "/orders/a/b"),
        ("//", "//"),
        ("//db-test", "//db-test"),
        ("/a%20b", "/a b"),
        ("/%E8%BF%9E%E6%8E%A5", "/连接"),
        ("/%0d%0aSet-Cookie:x", "/\r\nSet-Cookie:x"),
        ("/%2e%2e/etc", "/../etc"),
        ("/Db-Test", "/Db-Test"),
    ],
)
def test_an_unknown_route_is_a_problem_document(every: list[Service], target: str, shown: str) -> None:
    answer = same(every, "GET", target)
    expect(answer, 404)
    assert answer.json["detail"] == f"there is no route {shown}"
    expect(same(every, "POST", target, b"{}"), 404)


@pytest.mark.parametrize("target", ["/%ff", "/orders/%ff", "/nul%00"])
def test_an_odd_path_is_a_client_error(every: list[Service], target: str) -> None:
    assert 400 <= same(every, "GET", target).status < 500


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("POST", "/", "GET, HEAD"),
        ("DELETE", "/db-test", "GET, HEAD"),
        ("PUT", "/pool-status", "GET, HEAD"),
        ("POST", "/work?ms=1", "GET, HEAD"),
        ("PATCH", "/livez", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
        ("GET", "/orders", "POST"),
        ("HEAD", "/orders", "POST"),
        ("DELETE", "/orders", "POST"),
        ("POST", "/orders/count", "GET, HEAD"),
        ("DELETE", "/orders/o-1", "GET, HEAD"),
        ("OPTIONS", "/", "GET, HEAD"),
        ("OPTIONS", "/orders", "POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(every: list[Service], method: str, target: str, allow: str) -> None:
    answer = same(every, method, target)
    expect(answer, 405)
    assert answer.header("allow") == allow


# -- queries


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?",
        "?ms=",
        "?ms=soon",
        "?ms=-1",
        "?ms=+1",
        "?ms=1.5",
        "?ms=1e3",
        "?ms=0x1",
        "?ms=%201",
        "?ms=%EF%BC%91",
        "?ms=%ff",
        "?ms=%zz",
        "?ms=3600001",
        "?ms=1000000000000000000000",
        "?MS=1",
        "?seconds=1",
    ],
)
def test_a_bad_query_of_work_is_refused(every: list[Service], query: str) -> None:
    expect(same(every, "GET", f"/work{query}"), 400)


@pytest.mark.parametrize("target", ["/pool-status?detail=2", "/pool-status?detail=", "/db-test-leak?collect=yes"])
def test_a_flag_is_0_or_1(every: list[Service], target: str) -> None:
    expect(same(every, "GET", target), 400)


@pytest.mark.parametrize("query", ["?ms=1&ms=soon", "?ms=soon&ms=1", "?ms=1;ms=2", "?ms=1&other=2", "?&ms=1&"])
def test_a_repeated_parameter_means_the_same_everywhere(every: list[Service], query: str) -> None:
    same(every, "GET", f"/work{query}")


# -- orders


def test_an_order_is_created_once_and_found_again(every: list[Service]) -> None:
    order = {"id": "order-1_A.b", "item": "连接池 notebook", "quantity": 3}
    created = same(every, "POST", "/orders", spelt(order))
    expect(created, 201)
    assert created.json == order
    assert list(created.json) == ["id", "item", "quantity"]
    assert created.header("location") == "/orders/order-1_A.b"
    again = same(every, "POST", "/orders", spelt(order))
    expect(again, 200)
    assert again.body == created.body
    found = same(every, "GET", "/orders/order-1_A.b")
    expect(found, 200)
    assert found.body == created.body
    other = same(every, "POST", "/orders", spelt({**order, "quantity": 4}))
    expect(other, 409)
    assert same(every, "GET", "/orders/order-1_A.b").json["quantity"] == 3


def test_an_orders_quantity_is_one_if_it_says_none(every: list[Service]) -> None:
    expect(same(every, "POST", "/orders", b'{"id": "plain", "item": "x"}'), 201)
    assert same(every, "GET", "/orders/plain").json["quantity"] == 1


def test_the_count_grows_with_each_order(every: list[Service]) -> None:
    before = same(every, "GET", "/orders/count").json["count"]
    for number in range(3):
        expect(same(every, "POST", "/orders", spelt({"id": f"count-{number}", "item": "x"})), 201)
    assert same(every, "GET", "/orders/count").json["count"] == before + 3


def test_an_order_that_is_not_there_is_not_found(every: list[Service]) -> None:
    answer = same(every, "GET", "/orders/nobody")
    expect(answer, 404)
    assert answer.json["detail"] == "there is no order nobody"
    expect(same(every, "GET", "/orders/%E8%BF%9E"), 404)
    expect(same(every, "GET", "/orders/a%20b"), 404)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"hello",
        b"\xff\xfe",
        b'{"id": "o", "item": "\xff"}',
        b"[" * 10_000,
        b"[]",
        b'"o"',
        b"null",
        b"{}",
        b'{"id": "o"}',
        b'{"item": "x"}',
        spelt({**ORDER, "price": 1}),
        spelt({**ORDER, "Id": "o"}),
        spelt({**ORDER, "id": ""}),
        spelt({**ORDER, "id": "x" * 65}),
        spelt({**ORDER, "id": "a/b"}),
        spelt({**ORDER, "id": "连"}),
        spelt({**ORDER, "id": "a\n"}),
        spelt({**ORDER, "id": 7}),
        spelt({**ORDER, "id": None}),
        spelt({**ORDER, "item": ""}),
        spelt({**ORDER, "item": "x" * 65}),
        spelt({**ORDER, "item": "a\x00b"}),
        spelt({**ORDER, "item": ["x"]}),
        b'{"id": "o", "item": "\\ud800"}',
        spelt({**ORDER, "quantity": 0}),
        spelt({**ORDER, "quantity": -1}),
        spelt({**ORDER, "quantity": 1_000_001}),
        spelt({**ORDER, "quantity": True}),
        spelt({**ORDER, "quantity": "1"}),
        spelt({**ORDER, "quantity": 1.0}),
        spelt({**ORDER, "quantity": None}),
        b'{"id": "o", "item": "x", "quantity": 1e400}',
        b'{"id": "o", "item": "x", "quantity": ' + b"9" * 5000 + b"}",
        b'{"id": "o", "item": "x", "quantity": NaN}',
        b" " * 16_384,
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_a_bad_order_is_refused_and_not_stored(every: list[Service], body: bytes) -> None:
    expect(same(every, "POST", "/orders", body), 400)
    expect(same(every, "GET", "/orders/o"), 404)


@pytest.mark.parametrize("size", [16_385, 100_000, 2_000_000])
def test_a_body_that_is_too_large_is_refused(every: list[Service], size: int) -> None:
    expect(same(every, "POST", "/orders", b" " * size), 413)


def test_a_chunked_body_is_as_good_as_any(every: list[Service]) -> None:
    order = spelt({"id": "chunked", "item": "x"})
    pieces = [order[:7], order[7:]]
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    for service in every:
        connection = service.connect()
        connection.expect("POST")
        connection.send(b"POST /orders HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        expect(connection.answer(), 201)
        assert connection.get("/orders/chunked").json["item"] == "x"


def test_the_connection_survives_a_problem(every: list[Service]) -> None:
    for service in every:
        connection = service.connect()
        for method, target, body, status in (
            ("GET", "/nowhere", b"", 404),
            ("DELETE", "/", b"", 405),
            ("POST", "/orders", b"{", 400),
            ("HEAD", "/nowhere", b"", 404),
            ("GET", "/", b"", 200),
        ):
            answer = connection.ask(method, target, body).answer()
            assert (answer.status, answer.closes) == (status, False), service.backend.name


# -- when the database fails


def test_an_internal_error_is_a_problem_document_and_one_traceback_in_the_log(
    services: Launcher, postgres: Postgres
) -> None:
    databases = {backend.name: postgres.new_database() for backend in SERVERS}
    every = services.start_all(SERVERS, url=lambda backend: postgres.url_of(databases[backend.name]))
    for service in every:
        database = Postgres(postgres.url_of(databases[service.backend.name]))
        database.run("DROP TABLE orders")
        database.close()
    answer = same(every, "GET", "/orders/count")
    expect(answer, 500)
    assert answer.json["detail"] == "the request failed; the log says why"
    expect(same(every, "POST", "/orders", spelt(ORDER)), 500)
    assert same(every, "GET", "/pool-status").json["pool_status"]["checkedout"] == 0
    for service in every:
        failures = [record for record in service.log if record["level"] == "error"]
        assert [record["message"] for record in failures] == ["GET /orders/count failed", "POST /orders failed"]
        assert all("UndefinedTable" in record["traceback"] for record in failures)


def test_a_database_out_of_reach_is_503_and_one_line_without_a_traceback(
    services: Launcher, postgres: Postgres
) -> None:
    databases = {backend.name: postgres.new_database() for backend in SERVERS}
    every = services.start_all(SERVERS, url=lambda backend: postgres.url_of(databases[backend.name]))
    for service in every:
        postgres.run(f"ALTER DATABASE {databases[service.backend.name]} ALLOW_CONNECTIONS false")
        postgres.terminate(postgres.sessions(service.pids))
        postgres.await_no_sessions(service.pids)
    answer = same(every, "GET", "/db-test")
    expect(answer, 503)
    assert answer.json["detail"] == "the database is out of reach"
    assert not answer.closes
    for service in every:
        assert [record["level"] for record in service.log if "GET /db-test: " in record["message"]] == ["warning"]
        assert not any("traceback" in record for record in service.log)
        postgres.run(f"ALTER DATABASE {databases[service.backend.name]} ALLOW_CONNECTIONS true")
    expect(same(every, "GET", "/db-test"), 200)


def test_an_exhausted_pool_is_503(services: Launcher, in_flight: PutInFlight) -> None:
    one = ("--pool-size", "1", "--max-overflow", "0", "--pool-timeout", "0.2")
    every = services.start_all(SERVERS, *one)
    holds = [in_flight(service) for service in every]
    answer = same(every, "GET", "/db-test")
    expect(answer, 503)
    assert answer.json["detail"] == "no database connection became free in time"
    assert not answer.closes
    for held in holds:
        held.release()
        assert [answer.status for answer in held.answers()] == [201]


# -- while draining


def test_what_is_refused_while_draining_is_the_same_everywhere(services: Launcher, in_flight: PutInFlight) -> None:
    every = services.start_all(SERVERS)
    holds = [in_flight(service) for service in every]
    for service in every:
        service.send_signal()
    for service in every:
        service.await_drain()
    for method, target, body in (
        ("GET", "/", b""),
        ("HEAD", "/", b""),
        ("GET", "/db-test", b""),
        ("GET", "/work?ms=bad", b""),
        ("GET", "/nowhere", b""),
        ("DELETE", "/", b""),
        ("POST", "/orders", spelt(ORDER)),
        ("POST", "/orders", b"{"),
        ("POST", "/orders", b" " * 100_000),
    ):
        answer = same(every, method, target, body)
        assert answer.status == 503
        assert answer.header("content-type") == PROBLEM
        assert answer.header("retry-after") == "1"
        assert answer.header("connection") == "close"
        assert answer.body == b"" if method == "HEAD" else answer.json["title"] == "Service Unavailable"
    for target, status in (("/livez", 200), ("/readyz", 503), ("/pool-status", 200), ("/pool-status?detail=2", 400)):
        answer = same(every, "GET", target)
        assert answer.status == status
        assert answer.header("connection") == "close"
    assert same(every, "GET", "/pool-status").json["requests"] == {"accepting": False, "active": 1}
    assert same(every, "GET", "/readyz").json == {"status": "not ready", "phase": "DRAINING"}
    for held, service in zip(holds, every, strict=True):
        held.release()
        assert [(answer.status, answer.header("connection")) for answer in held.answers()] == [(201, "close")]
        assert service.ended().code == 0
