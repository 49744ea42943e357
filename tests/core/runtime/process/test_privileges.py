"""Becoming another user: for good, with its groups, and only where that user can go on."""

from __future__ import annotations

import os
import pwd

import pytest

from pooldrain.errors import ConfigurationError
from pooldrain.runtime.process.privileges import account
from tests.harness.programs import printed_by

NOBODY = pwd.getpwnam("nobody")

BECOME = """
import os
from pooldrain.runtime.process import privileges
os.access = lambda *_: {readable}
try:
    privileges.become(privileges.account("nobody", None))
except privileges.ConfigurationError as error:
    print(error)
else:
    try:
        os.setuid(0)
    except PermissionError:
        print(os.getresuid(), os.getresgid(), os.getgroups())
"""


def become(*, readable: bool) -> str:
    return printed_by(BECOME.format(readable=readable))


def test_nobody_is_asked_to_become_nobody_else() -> None:
    assert account(None, None) is None


def test_a_group_alone_leaves_the_user() -> None:
    if os.geteuid() == 0:
        found = account(None, "nogroup")
        assert found is not None
        assert (found.name, found.user) == ("root", 0)


def test_only_root_may_become_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: NOBODY.pw_uid + 1)
    with pytest.raises(ConfigurationError, match=r"^--user and --group need root"):
        account("nobody", None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_there_is_no_way_back() -> None:
    user, group = NOBODY.pw_uid, NOBODY.pw_gid
    assert become(readable=True) == f"{(user,) * 3} {(group,) * 3} [{group}]\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_user_who_cannot_read_python_is_told() -> None:
    assert become(readable=False).startswith("the user nobody cannot read Python's own files, or ours (")
