"""Requests, valid, odd and hostile, and what all servers make of them (RFC 9110, RFC 9112).

Grown from what gunicorn's, waitress's and llhttp's own tests hold to be invalid, in words of our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """Bytes on a new connection, and what comes back: the statuses, whether the connection is kept, what was seen."""

    name: str
    sent: bytes
    statuses: tuple[int, ...]
    kept: bool
    methods: tuple[str, ...]  # of the requests that are answered
    seen: Mapping[str, Any] = field(default_factory=dict)  # by the application, of the last request


def head(*lines: str, body: str = "") -> bytes:
    """Lines as a head, with what follows it."""
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode("latin-1")


def served(name: str, sent: bytes, *, kept: bool = True, methods: tuple[str, ...] = ("GET",), **seen: Any) -> Case:
    """All of them are answered 200."""
    return Case(name, sent, (200,) * len(methods), kept, methods, seen)


def refused(name: str, sent: bytes, status: int = 400) -> Case:
    """It is refused, and the connection closed."""
    return Case(name, sent, (status,), kept=False, methods=("GET",))


GET, POST = "GET / HTTP/1.1", "POST / HTTP/1.1"
HOST = "Host: x"
CHUNKED = "Transfer-Encoding: chunked"
NEXT = head(GET, HOST)


def get(*headers: str) -> bytes:
    """A GET with these headers beside its host."""
    return head(GET, HOST, *headers)


def post(*headers: str, body: str = "") -> bytes:
    """A POST with these headers beside its host."""
    return head(POST, HOST, *headers, body=body)


def chunked(body: str, *headers: str) -> bytes:
    """A POST in chunks."""
    return post(CHUNKED, *headers, body=body)


SERVED = (
    served("a GET", get(), method="GET", path="/", query="", body="", host="x", scheme="http"),
    served("a HEAD", head("HEAD / HTTP/1.1", HOST), methods=("HEAD",)),
    served("a DELETE", head("DELETE /a HTTP/1.1", HOST), method="DELETE"),
    served("a PUT with a body", head("PUT / HTTP/1.1", HOST, "Content-Length: 2", body="ab"), body="ab"),
    served("a PATCH without a body", head("PATCH / HTTP/1.1", HOST), method="PATCH", body=""),
    served("a method of WebDAV", head("PROPFIND / HTTP/1.1", HOST), method="PROPFIND"),
    served("OPTIONS of a path", head("OPTIONS /a HTTP/1.1", HOST), method="OPTIONS", path="/a"),
    served("a body with its length", post("Content-Length: 5", body="hello"), body="hello"),
    served("a GET with a body", get("Content-Length: 1") + b"a", body="a"),
    served("an empty body", post("Content-Length: 0"), body=""),
    served("a length with zeros before it", post("Content-Length: 005", body="hello"), body="hello"),
    served("a length with blanks around it", post("Content-Length: \t5 ", body="hello"), body="hello"),
    served("a POST without a length", post(), body=""),
    served("an empty line first", b"\r\n" + get()),
    served("a body in chunks", chunked("5\r\nhello\r\n0\r\n\r\n"), body="hello"),
    served("a body in many chunks", chunked("1\r\nh\r\n1\r\ne\r\n3\r\nllo\r\n0\r\n\r\n"), body="hello"),
    served("no chunk but the last", chunked("0\r\n\r\n"), body=""),
    served("a size of a chunk in large letters", chunked("A\r\n0123456789\r\n0\r\n\r\n"), body="0123456789"),
    served("a size of a chunk with zeros before it", chunked("0005\r\nhello\r\n000\r\n\r\n"), body="hello"),
    served("an extension of a chunk", chunked("5;a=b\r\nhello\r\n0;c\r\n\r\n"), body="hello"),
    served("a quoted extension of a chunk", chunked('5;a="b c"\r\nhello\r\n0\r\n\r\n'), body="hello"),
    served("a trailer, which is dropped", chunked("1\r\na\r\n0\r\nX-T1: b\r\n\r\n"), body="a", told={}),
    served("chunked in large letters", post("Transfer-Encoding: CHUNKED", body="1\r\na\r\n0\r\n\r\n"), body="a"),
    served("chunked after a tab", post("Transfer-Encoding:\tchunked", body="1\r\na\r\n0\r\n\r\n"), body="a"),
    served("two at once", get() + head("GET /b HTTP/1.1", HOST), methods=("GET", "GET"), path="/b"),
    served("a body, and one behind it", post("Content-Length: 1", body="a") + get(), methods=("POST", "GET"), body=""),
    served("chunks, and one behind them", chunked("1\r\na\r\n0\r\n\r\n") + get(), methods=("POST", "GET"), body=""),
    served("what looks like a request in a body", post(f"Content-Length: {len(NEXT)}") + NEXT, methods=("POST",)),
    served("an empty value", get("X-T:"), told={"x-t": ""}),
    served("a value after blanks", get("X-T: \t a"), told={"x-t": "a"}),
    served("a value before blanks", get("X-T: a\t "), told={"x-t": "a"}),
    served("a blank within a value", get("X-T: a\t b"), told={"x-t": "a\t b"}),
    served("a value that is no ASCII", get("X-T: \xe9"), told={"x-t": "\xe9"}),
    served("the same header twice", get("X-T: a", "x-t: b"), told={"x-t": "a,b"}),
    served("all that a name may have", get("X-T!#$%&'*+.^`|~0: a")),
    served("a query", head("GET /a?b=c&d HTTP/1.1", HOST), path="/a", query="b=c&d"),
    served("a query of question marks", head("GET /?? HTTP/1.1", HOST), path="/", query="?"),
    served("a path with escapes", head("GET /a%20b%C3%A9 HTTP/1.1", HOST), path="/a b\xe9"),
    served(
        "an escaped line break in the path", head("GET /%1b%5b31m%0d%0aFAKE HTTP/1.1", HOST), path="/\x1b[31m\r\nFAKE"
    ),
    served("an escape that is none", head("GET /a%zz HTTP/1.1", HOST), path="/a%zz"),
    served("an escape cut off", head("GET /a% HTTP/1.1", HOST), path="/a%"),
    served("two blanks before the target", head("GET  / HTTP/1.1", HOST)),
    served("slashes at the beginning", head("GET //a//b HTTP/1.1", HOST), path="//a//b"),
    served("dots in the path", head("GET /a/../b HTTP/1.1", HOST), path="/a/../b"),
    served("what else a path may have", head("GET /a;b=c,d:@!$&'()*+|\\^`{}\"<> HTTP/1.1", HOST)),
    served("a whole URL", head("GET http://x/a?b HTTP/1.1", HOST), path="/a", query="b"),
    served("a whole URL without a path", head("GET http://x HTTP/1.1", HOST), path="/"),
    served("a whole URL with a query alone", head("GET http://x?b HTTP/1.1", HOST), path="/", query="b"),
    served("a whole URL in large letters", head("GET HTTP://X/a HTTP/1.1", HOST), path="/a"),
    served("a host with a port", head(GET, "Host: x:80"), host="x:80"),
    served("a host that is an IPv6 address", head(GET, "Host: [::1]:80"), host="[::1]:80"),
    served("an empty host", head(GET, "Host:"), host=""),
    served("an expectation that is met", post("Expect: 100-continue", "Content-Length: 1", body="a"), body="a"),
    served("an expectation without a body", get("Expect: 100-continue")),
    served("a wish to keep the connection", get("Connection: keep-alive")),
    served("a wish to close it", get("Connection: close"), kept=False),
    served("a wish to close it among others", get("Connection: close, te"), kept=False),
    served("a wish to close it in large letters", get("Connection: CLOSE"), kept=False),
    served("one behind a wish to close", get("Connection: close") + get(), kept=False),
    served("HTTP/1.0", head("GET / HTTP/1.0"), kept=False, host=None),
    served("HTTP/1.0 with a host", head("GET / HTTP/1.0", HOST), kept=False, host="x"),
    served("HTTP/1.0 that keeps the connection", head("GET / HTTP/1.0", "Connection: keep-alive")),
    served("HTTP/1.0 with a body", head("POST / HTTP/1.0", "Content-Length: 1", body="a"), kept=False, body="a"),
    served(
        "HTTP/1.0 with a body that keeps the connection",
        head("POST / HTTP/1.0", "Connection: Keep-Alive", "Content-Length: 1", body="a"),
        body="a",
    ),
    served(
        "HTTP/1.0 and an expectation", head("POST / HTTP/1.0", "Expect: 100-continue", "Content-Length: 0"), kept=False
    ),
    served("HTTP/1.0 and a stream", head("GET /stream HTTP/1.0", "Connection: keep-alive"), kept=False),
    served("a stream", head("GET /stream HTTP/1.1", HOST)),
    Case("an answer without a body", head("GET /no-content HTTP/1.1", HOST), (204,), kept=True, methods=("GET",)),
    served("a long cookie", get("Cookie: " + "a" * 20_000)),
    served("a long path", head(f"GET /{'a' * 10_000} HTTP/1.1", HOST), path="/" + "a" * 10_000),
    served("many headers", get(*(f"X-{number}: a" for number in range(500)))),
)

REFUSED = (
    refused("a length and chunks", post("Content-Length: 6", CHUNKED, body="0\r\n\r\nG")),
    refused("chunks and a length", post(CHUNKED, "Content-Length: 6", body="0\r\n\r\nG")),
    refused("two lengths that differ", post("Content-Length: 1", "Content-Length: 2", body="ab")),
    refused("two lengths that are the same", post("Content-Length: 1", "Content-Length: 1", body="a")),
    refused("a list of lengths", post("Content-Length: 1, 1", body="a")),
    refused("a length with a sign", post("Content-Length: +1", body="a")),
    refused("a length below zero", post("Content-Length: -1", body="a")),
    refused("a length in hexadecimal", post("Content-Length: 0x1", body="a")),
    refused("a length with an underscore", post("Content-Length: 1_0", body="a" * 10)),
    refused("a length that is empty", post("Content-Length:", body="a")),
    refused("a length that is a word", post("Content-Length: one", body="a")),
    refused("a length of two words", post("Content-Length: 1 1", body="a")),
    refused("a length without end", post("Content-Length: " + "9" * 40, body="a")),
    refused("a fraction of a length", post("Content-Length: 1.0", body="a")),
    refused("two transfer codings, in two headers", post(CHUNKED, "Transfer-Encoding: identity", body="0\r\n\r\n")),
    refused("chunked twice", post(CHUNKED, CHUNKED, body="0\r\n\r\n")),
    refused("a transfer coding that nobody knows", post("Transfer-Encoding: xchunked", body="0\r\n\r\n"), 501),
    refused("chunks of gzip", post("Transfer-Encoding: gzip, chunked", body="0\r\n\r\n"), 501),
    refused("no transfer coding", post("Transfer-Encoding: identity", body="a"), 501),
    refused("an empty transfer coding", post("Transfer-Encoding:", body="a")),
    refused("chunked with a parameter", post("Transfer-Encoding: chunked;q=1", body="0\r\n\r\n"), 501),
    refused("chunked in quotes", post('Transfer-Encoding: "chunked"', body="0\r\n\r\n"), 501),
    refused("chunked after a control character", post("Transfer-Encoding: \x0bchunked", body="0\r\n\r\n")),
    refused("HTTP/1.0 and chunks", head("POST / HTTP/1.0", CHUNKED, body="0\r\n\r\n")),
    refused("a chunk below zero", chunked("-1\r\nx\r\n0\r\n\r\n")),
    refused("a chunk with a sign", chunked("+1\r\nx\r\n0\r\n\r\n")),
    refused("a chunk with 0x", chunked("0x1\r\nx\r\n0\r\n\r\n")),
    refused("a chunk with an underscore", chunked("1_0\r\n0123456789012345\r\n0\r\n\r\n")),
    refused("a chunk without a size", chunked("\r\nx\r\n0\r\n\r\n")),
    refused("a size with a blank before it", chunked(" 1\r\nx\r\n0\r\n\r\n")),
    refused("a chunk that is a word", chunked("xyz\r\nx\r\n0\r\n\r\n")),
    refused("a chunk beyond all numbers", chunked("ffffffffffffffffff\r\nx\r\n0\r\n\r\n")),
    refused("a chunk longer than it says", chunked("1\r\nxy\r\n0\r\n\r\n")),
    refused("a size that ends with a line feed alone", chunked("1\nx\r\n0\r\n\r\n")),
    refused("a chunk that ends with a line feed alone", chunked("1\r\nx\n0\r\n\r\n")),
    refused("an extension with a line feed", chunked("1;a\nb\r\nx\r\n0\r\n\r\n")),
    refused("a trailer that names a length", chunked("1\r\na\r\n0\r\nContent-Length: 9\r\n\r\n")),
    refused("a name before a blank", head(GET, "Host : x")),
    refused("a name before a tab", head(GET, "Host\t: x")),
    refused("a header without a name", get(": a")),
    refused("a header without a colon", get("nothing")),
    refused("a blank within a name", get("X A: a")),
    refused("a name in parentheses", get("(X): a")),
    refused("a name that is no ASCII", get("X-\xe9: a")),
    refused("a name with a null", get("X-\0: a")),
    refused("a value with a null", get("X-T: a\0b")),
    refused("a value with an escape character", get("X-T: a\x1b[31m")),
    refused("a value with a carriage return", get("X-T: a\rb")),
    refused("a value with a line feed", get("X-T: a\nX-T2: b")),
    refused("a header folded onto a second line", get("X-T: a", " b")),
    refused("a header folded with a tab", get("X-T: a", "\tb")),
    refused("a folded header, and nothing before it", head(GET, " Host: x")),
    refused("lines that end with a line feed alone", b"GET / HTTP/1.1\nHost: x\n\n"),
    refused("a head that ends with a line feed alone", b"GET / HTTP/1.1\r\nHost: x\r\n\n"),
    refused("a request line that ends with a carriage return alone", b"GET / HTTP/1.1\rHost: x\r\n\r\n"),
    refused("no host", head(GET)),
    refused("two hosts", get("Host: y")),
    refused("the same host twice", get(HOST)),
    refused("two hosts in HTTP/1.0", head("GET / HTTP/1.0", HOST, HOST)),
    refused("a list of hosts", head(GET, "Host: x, y")),
    refused("a host with a path", head(GET, "Host: x/y")),
    refused("a host with a user", head(GET, "Host: a@x")),
    refused("a host with a blank", head(GET, "Host: x y")),
    refused("a host that is no ASCII", head(GET, "Host: \xe9")),
    refused("a host with a query", head(GET, "Host: x?y")),
    refused("a whole URL of another host", head("GET http://y/ HTTP/1.1", HOST)),
    refused("a whole URL with a user", head("GET http://a@x/ HTTP/1.1", HOST)),
    refused("a whole URL of another scheme", head("GET ftp://x/ HTTP/1.1", HOST)),
    refused("a whole URL without a host", head("GET http:///a HTTP/1.1", HOST)),
    refused("a fragment", head("GET /a#b HTTP/1.1", HOST)),
    refused("a path without a slash", head("GET a HTTP/1.1", HOST)),
    refused("an asterisk", head("OPTIONS * HTTP/1.1", HOST)),
    refused("an authority", head("GET x:80 HTTP/1.1", HOST)),
    refused("a tunnel", head("CONNECT x:80 HTTP/1.1", "Host: x:80"), 501),
    refused("no target", head("GET  HTTP/1.1", HOST)),
    refused("a blank within the target", head("GET /a b HTTP/1.1", HOST)),
    refused("a control character in the target", head("GET /\x1b[31m HTTP/1.1", HOST)),
    refused("a target that is no ASCII", head("GET /\xc3\xa9 HTTP/1.1", HOST)),
    refused("a tab in the request line", head("GET\t/ HTTP/1.1", HOST)),
    refused("a method in small letters", head("get / HTTP/1.1", HOST)),
    refused("a method that nobody knows", head("BREW / HTTP/1.1", HOST)),
    refused("a method with a blank before it", head(" GET / HTTP/1.1", HOST)),
    refused("HTTP/0.9", b"GET /\r\n\r\n"),
    refused("HTTP/1.2", head("GET / HTTP/1.2", HOST)),
    refused("HTTP/1.10", head("GET / HTTP/1.10", HOST)),
    refused("HTTP/2.0", head("GET / HTTP/2.0", HOST)),
    refused("http in small letters", head("GET / http/1.1", HOST)),
    refused("no version", head("GET / HTTP/", HOST)),
    refused("another protocol", head("GET / ICE/1.0", HOST)),
    refused("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    refused("the beginning of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    refused("an answer", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    refused("an expectation that cannot be met", get("Expect: a-miracle"), 417),
    refused("a cookie that is too long", get("Cookie: " + "a" * 70_000), 431),
    refused("a path that is too long", head(f"GET /{'a' * 70_000} HTTP/1.1", HOST), 414),
    refused("too many headers", get(*(f"X-{number}: {'a' * 100}" for number in range(700))), 431),
    Case("what is no request behind one", get() + b"nonsense\r\n\r\n", (200, 400), kept=False, methods=("GET", "GET")),
    Case(
        "a smuggled request behind one",
        get() + post("Content-Length: 1", CHUNKED),
        (200, 400),
        kept=False,
        methods=("GET", "POST"),
    ),
)

CORPUS = SERVED + REFUSED


def table() -> str:
    """The corpus as the documentation shows it."""
    lines = ["| request | answer | its connection |", "|---|---|---|"]
    for case in CORPUS:
        statuses = ", ".join(map(str, case.statuses))
        lines.append(f"| {case.name} | {statuses} | {'kept' if case.kept else 'closed'} |")
    return "\n".join(lines) + "\n"
