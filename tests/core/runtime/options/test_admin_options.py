"""`--admin` and `--admin-token`: who may look inside, decided before anything starts; the token is never shown."""

from __future__ import annotations

import pytest

from pooldrain.errors import ConfigurationError
from pooldrain.runtime.options.settings import load_settings

TOKEN = "a-token-that-nobody-guesses"
APP = ["--app", "shop:app"]


def test_the_demo_has_it_on_loopback_and_an_application_has_it_off() -> None:
    assert load_settings("sync", [], {}).admin == ("127.0.0.1", 0)
    assert load_settings("sync", APP, {}).admin is None
    assert load_settings("async", [*APP, "--admin", "127.0.0.1:8001"], {}).admin == ("127.0.0.1", 8001)
    assert load_settings("async", ["--admin", "off"], {}).admin is None


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "unix:/tmp/admin.sock"])
def test_what_only_this_machine_reaches_needs_no_token(address: str) -> None:
    assert load_settings("sync", ["--admin", address], {}).admin is not None


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.7:1", "shop.example:1"])
def test_what_others_reach_needs_the_token(address: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        load_settings("sync", ["--admin", address], {})
    assert str(told.value) == "--admin: others than this machine could look inside; give --admin-token, or 127.0.0.1"
    settings = load_settings("sync", ["--admin", address], {"POOLDRAIN_ADMIN_TOKEN": TOKEN})
    assert settings.admin_token is not None
    assert settings.admin_token.value == TOKEN


def test_a_token_that_nobody_is_asked_for_is_refused() -> None:
    with pytest.raises(ConfigurationError) as told:
        load_settings("sync", [*APP, "--admin-token", TOKEN], {})
    assert str(told.value) == "--admin-token needs the address to look inside on, in --admin"


@pytest.mark.parametrize(
    "token", ["short", "with spaces in it, and long", "пароль-пароль-пароль", "line\nbreak-and-longer"]
)
def test_a_token_that_is_none_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        load_settings("sync", [], {"POOLDRAIN_ADMIN_TOKEN": token})
    assert str(told.value) == (
        "POOLDRAIN_ADMIN_TOKEN: must be a secret of at least 16 ASCII characters, without spaces"
    )


def test_the_token_is_shown_nowhere() -> None:
    settings = load_settings("sync", ["--admin-token", TOKEN], {})
    assert TOKEN not in settings.describe()
    assert "admin-token = ***" in settings.describe()
    assert TOKEN not in repr(settings)
