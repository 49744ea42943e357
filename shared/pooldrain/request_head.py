"""Which heads of requests are served: what a parser of HTTP lets through and no server of ours does.

RFC 9112 (HTTP/1.1), and RFC 9110 for Host, Expect and CONNECT. The parser, llhttp on every server, has seen to the
syntax; here is the rest, so that all servers, and a proxy in front of them, read the same request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pooldrain.errors import InvalidRequest

# Bytes of a head, unless an option says otherwise: request line and header lines.
LONGEST_HEAD = 65536

# RFC 3986: a host, maybe with a port; with nothing of what separates the parts of a URL, and no user.
_HOST = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([^#]*)", re.IGNORECASE)
_NOT_IN_TARGET = re.compile(rb"[^\x21-\x7e]|#")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a request is read at all, in bytes. `body` None: as much as comes."""

    head: int = LONGEST_HEAD
    body: int | None = None

    def check_body(self, size: int) -> None:
        """Raises InvalidRequest if a body of this size is too long."""
        if self.body is not None and size > self.body:
            raise InvalidRequest("its body is too long", 413)

    def head_too_long(self, *, in_target: bool) -> InvalidRequest:
        """What to raise for a head of which more has come than is read."""
        return InvalidRequest("its head is too long", 414 if in_target else 431)


def is_host(text: str) -> bool:
    """Whether it is a host, maybe with a port."""
    return text.isascii() and _HOST.fullmatch(text.encode()) is not None


def check_head(
    method: str, version: str, target: bytes, headers: Iterable[tuple[bytes, bytes]], limits: Limits
) -> tuple[bytes, bool, bool]:
    """Path and query, whether there may be a body, and whether its client waits to be asked for it.

    The headers' values come without the blanks around them.

    Raises InvalidRequest, with the status of the answer, if it is not served.
    """
    host: bytes | None = None
    has_body = expects = False
    length = len(method) + len(target) + 14  # with "HTTP/1.1", two spaces, and the ends of two lines
    for name, value in headers:
        size = len(name)
        length += size + len(value) + 4
        if size == 4 and name.lower() == b"host":
            if host is not None:
                raise InvalidRequest("it has two hosts")
            host = value
        elif size == 14 and name.lower() == b"content-length":
            has_body = value != b"0"
            if limits.body is not None:
                limits.check_body(int(value))
        elif size == 17 and name.lower() == b"transfer-encoding":
            if version == "1.0":
                raise InvalidRequest("HTTP/1.0 has no transfer codings")
            if value.lower() != b"chunked":
                raise InvalidRequest("its transfer coding is not supported", 501)
            has_body = True
        elif size == 6 and name.lower() == b"expect":
            if value.lower() != b"100-continue":
                raise InvalidRequest("its expectation cannot be met", 417)
            expects = version != "1.0"
    if length > limits.head:
        raise limits.head_too_long(in_target=len(target) >= limits.head)
    if version not in ("1.0", "1.1"):
        raise InvalidRequest(f"HTTP/{version} is not spoken here")
    if host is None:
        if version == "1.1":
            raise InvalidRequest("it has no host")
    elif not _HOST.fullmatch(host):
        raise InvalidRequest("its host is none")
    if method == "CONNECT":
        raise InvalidRequest("nothing is tunnelled here", 501)
    return _origin_form(target, host), has_body, expects


def _origin_form(target: bytes, host: bytes | None) -> bytes:
    """Path and query of a target."""
    if _NOT_IN_TARGET.search(target):
        raise InvalidRequest("its target is no URL")
    if target.startswith(b"/"):
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise InvalidRequest("its target is no URL")
    authority, rest = absolute.groups()
    if host is not None and authority.lower() != host.lower():
        raise InvalidRequest("its target and its host differ")
    return rest if rest.startswith(b"/") else b"/" + rest
