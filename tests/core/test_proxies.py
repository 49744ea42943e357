"""Whose word is taken for who a client is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from pooldrain.proxies import NOTHING, Forwarded, TrustedProxies

PROXIES = TrustedProxies.parse("10.0.0.0/8, 2001:db8::/32, unix")
PROXY = "10.0.0.1"


def headers(**values: str | Sequence[str]) -> Callable[[str], Sequence[str]]:
    """Headers X-Forwarded-*, by the last part of their names."""
    every = {f"x-forwarded-{name.rstrip('_')}": value for name, value in values.items()}
    return lambda name: [each] if isinstance(each := every.get(name, ()), str) else each


@pytest.mark.parametrize(
    ("told", "client"),
    [
        ("192.0.2.1", ("192.0.2.1", 0)),
        ("192.0.2.1:4711", ("192.0.2.1", 4711)),
        ("2001:db9::1", ("2001:db9::1", 0)),
        ("[2001:db9::1]", ("2001:db9::1", 0)),
        ("[2001:db9::1]:80", ("2001:db9::1", 80)),
        ("::ffff:192.0.2.1", ("192.0.2.1", 0)),
        ("198.51.100.7, 192.0.2.1", ("192.0.2.1", 0)),
        ("198.51.100.7, 192.0.2.1, 10.0.0.2", ("192.0.2.1", 0)),
        ("198.51.100.7, 192.0.2.1, 10.0.0.2, 2001:db8::2", ("192.0.2.1", 0)),
        ("10.0.0.3, 10.0.0.2", ("10.0.0.3", 0)),
        ("unknown, 10.0.0.2", ("10.0.0.2", 0)),
        ("192.0.2.1, nonsense", None),
        ("nonsense", None),
        ("", None),
        (["192.0.2.1", "192.0.2.2"], ("192.0.2.2", 0)),
    ],
)
def test_the_client_is_the_last_address_that_is_no_trusted_proxys(
    told: str | list[str], client: tuple[str, int] | None
) -> None:
    assert PROXIES.forwarded(PROXY, headers(for_=told)).client == client


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"proto": "https"}, Forwarded(scheme="https")),
        ({"proto": "http, HTTPS"}, Forwarded(scheme="https")),
        ({"proto": "javascript"}, NOTHING),
        ({"host": "shop.example:8443"}, Forwarded(host="shop.example:8443")),
        ({"host": "evil.example, shop.example"}, Forwarded(host="shop.example")),
        ({"host": "a/b"}, NOTHING),
        ({"host": "\xe9"}, NOTHING),
        ({"prefix": "/shop/"}, Forwarded(prefix="/shop")),
        ({"prefix": "/"}, NOTHING),
        ({"prefix": "//evil.example"}, NOTHING),
        ({"prefix": "shop"}, NOTHING),
    ],
)
def test_of_a_trusted_proxy_the_last_valid_word_counts(values: dict[str, str], said: Forwarded) -> None:
    assert PROXIES.forwarded(PROXY, headers(**values)) == said


@pytest.mark.parametrize("peer", ["192.0.2.9", "127.0.0.1", "::1", "2001:db9::1", "nonsense"])
def test_nobody_else_is_believed(peer: str) -> None:
    said = PROXIES.forwarded(peer, headers(for_="192.0.2.1", proto="https", host="x", prefix="/x"))
    assert said == NOTHING


@pytest.mark.parametrize("peer", ["10.9.9.9", "2001:db8::5", "::ffff:10.0.0.1", ""])
def test_a_proxy_is_known_by_its_address_or_by_its_socket(peer: str) -> None:
    assert PROXIES.forwarded(peer, headers(proto="https")).scheme == "https"


def test_nobody_is_trusted_unless_somebody_says_so() -> None:
    assert not TrustedProxies()
    assert not TrustedProxies.parse("off")
    assert not TrustedProxies.parse("10.0.0.1").trusts("")


@pytest.mark.parametrize("text", ["10.0.0.1/8", "host.example", "10.0.0.0/33", "off, 10.0.0.1", "*"])
def test_what_is_no_network_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="must be addresses and networks"):
        TrustedProxies.parse(text)
