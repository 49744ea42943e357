"""What is made of the bytes of a request."""

from __future__ import annotations

import io
from typing import Any

import pytest

from pooldrain.errors import InvalidRequest
from pooldrain.proxies import TrustedProxies
from pooldrain.request_head import LONGEST_HEAD
from pooldrain_sync.engine.request import (
    Request,
    RequestParser,
    StreamedBody,
    base_environ,
    environ_of,
)

PROXY = TrustedProxies.parse("10.0.0.1")


def parse(*parts: bytes) -> list[Request]:
    parser = RequestParser()
    for part in parts:
        parser.feed(part)
    return list(parser.requests)


def environ(head: bytes, peer: str = "127.0.0.1", proxies: TrustedProxies | None = None) -> dict[str, Any]:
    [request] = parse(head)
    return environ_of(base_environ(("host", 80), "tested"), request, (peer, 5), proxies)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_request_may_come_in_parts(size: int) -> None:
    whole = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    [request] = parse(*(whole[start : start + size] for start in range(0, len(whole), size)))
    assert (request.method, request.path, request.query, request.version) == ("POST", "/a", b"b=c", "1.1")
    assert request.complete
    assert request.keep_alive
    assert request.input.read() == b"hello"


def test_requests_may_follow_each_other_without_waiting() -> None:
    first, second = parse(
        b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab"
    )
    assert (first.path, first.complete) == ("/1", True)
    assert (second.path, second.complete, second.kept) == ("/2", False, 2)


def test_a_wish_for_another_protocol_is_not_heard() -> None:
    upgrade = b"GET /1 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert [request.path for request in parse(upgrade + b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n")] == ["/1", "/2"]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: x\r\nExpect: a miracle\r\n\r\n", 417),
        (b"GET /" + b"x" * LONGEST_HEAD, 414),
        (b"GET / HTTP/1.1\r\nCookie: " + b"x" * LONGEST_HEAD, 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"x" * LONGEST_HEAD, 431),
    ],
)
def test_what_is_not_valid_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(head)
    assert caught.value.status == status


def test_the_environment_is_that_of_the_standard() -> None:
    made = environ(b"GET /a%20b//c?d=%20 HTTP/1.1\r\nHost: x\r\nContent-Type: y\r\nA: 1\r\nA: 2\r\nA_B: 3\r\n\r\n")
    wanted = {"REQUEST_METHOD": "GET", "PATH_INFO": "/a b//c", "QUERY_STRING": "d=%20", "CONTENT_TYPE": "y"}
    wanted |= {"HTTP_HOST": "x", "HTTP_A": "1,2", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1"}
    assert made.items() >= wanted.items()
    assert "HTTP_A_B" not in made, "nobody can pretend to be another header"


def test_a_whole_url_is_a_path_too() -> None:
    assert (
        environ(b"GET http://x/a?b HTTP/1.1\r\nHost: x\r\n\r\n").items()
        >= {"PATH_INFO": "/a", "QUERY_STRING": "b"}.items()
    )


@pytest.mark.parametrize(("peer", "scheme"), [("10.0.0.1", "https"), ("10.0.0.2", "http")])
def test_who_is_believed_says_that_its_client_has_used_https(peer: str, scheme: str) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: https\r\n\r\n"
    assert environ(head, peer, PROXY)["wsgi.url_scheme"] == scheme


def test_a_body_that_is_still_coming_is_read_as_it_comes() -> None:
    parser = RequestParser()
    parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab\n\r\n")
    [request] = parser.requests
    coming = [b"5\r\ncdefg\r\n", b"0\r\nTrailer: x\r\n\r\n"]
    body = io.BufferedReader(StreamedBody(request, lambda: parser.feed(coming.pop(0))))
    assert body.readline() == b"ab\n"
    assert body.read() == b"cdefg"
    assert body.read() == b""
    assert not any(name == b"Trailer" for name, _ in request.headers)
