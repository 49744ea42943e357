"""Whom a proxy speaks for: one meaning of `X-Forwarded-*` for all servers.

Believed is what a trusted proxy says, and of that what it has said itself: the last value of each header. Of the
addresses in `X-Forwarded-For`, each of which its proxy has seen, the client's is the last one that is not a trusted
proxy's (as nginx's `real_ip_recursive`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pooldrain.request_head import is_host

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_PREFIX = re.compile(r"(/[A-Za-z0-9\-._~%!$&'()*+,;=:@]+)+")

_WITH_PORT = re.compile(r"(?:\[([^\]]*)\]|([0-9.]+))(?::(\d{1,5}))?")

# The headers that are read, in lower case.
FORWARDED_FOR, PROTO, HOST, PREFIX = (f"x-forwarded-{what}" for what in ("for", "proto", "host", "prefix"))


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What a trusted proxy has said of a request; None where it has said nothing, or nothing valid."""

    client: tuple[str, int] | None = None  # port 0 if it is not told
    scheme: str | None = None  # http or https
    host: str | None = None
    prefix: str | None = None  # of the path, begins with a slash and does not end with one


NOTHING = Forwarded()


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """Whose word is taken: these networks'; and `local` ones', who have come over a Unix socket."""

    networks: tuple[Network, ...] = ()
    local: bool = False

    def __bool__(self) -> bool:
        return bool(self.networks) or self.local

    @classmethod
    def parse(cls, text: str) -> TrustedProxies:
        """From `10.0.0.0/8, ::1, unix`; `off` is nobody. Raises ValueError "must be ..."."""
        networks: list[Network] = []
        local = False
        for word in filter(None, map(str.strip, text.split(","))):
            if word.lower() == "unix":
                local = True
            elif word.lower() != "off" or text.strip().lower() != "off":
                try:
                    networks.append(ipaddress.ip_network(word))
                except ValueError:
                    raise ValueError(
                        "must be addresses and networks, as 10.0.0.0/8, ::1 (or unix), separated by commas"
                    ) from None
        return cls(tuple(networks), local)

    def trusts(self, peer: str) -> bool:
        """Whether this address, empty for a peer on a Unix socket, is a trusted proxy's."""
        if not peer:
            return self.local
        address = _address(peer)
        return address is not None and any(address in network for network in self.networks)

    def forwarded(self, peer: str, values: Callable[[str], Sequence[str]]) -> Forwarded:
        """What is believed of a request from `peer`; `values`: those of a header, in the order in which they came."""
        if not self.trusts(peer):
            return NOTHING
        scheme = _last(values(PROTO)).lower()
        host = _last(values(HOST))
        prefix = _last(values(PREFIX)).rstrip("/")
        return Forwarded(
            client=self._client(values(FORWARDED_FOR)),
            scheme=scheme if scheme in ("http", "https") else None,
            host=host if host and is_host(host) else None,
            prefix=prefix if _PREFIX.fullmatch(prefix) else None,
        )

    def _client(self, values: Sequence[str]) -> tuple[str, int] | None:
        client = None
        for hop in reversed(",".join(values).split(",")):
            told = _hop(hop.strip())
            if told is None:
                break  # what is left of it is nobody's word
            client = told
            if not self.trusts(told[0]):
                break
        return client


NOBODY = TrustedProxies()


def _last(values: Sequence[str]) -> str:
    return values[-1].rpartition(",")[2].strip() if values else ""


def _hop(text: str) -> tuple[str, int] | None:
    """`192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`."""
    with_port = _WITH_PORT.fullmatch(text)
    host, port = (with_port[1] or with_port[2], with_port[3]) if with_port else (text, None)
    address = _address(host)
    return None if address is None else (str(address), int(port or 0))


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
