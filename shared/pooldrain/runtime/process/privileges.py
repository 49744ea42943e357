"""Becoming another user, once what needs the rights of this one is done."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from pooldrain.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Account:
    """A user and a group, by number; `name` for the user's further groups."""

    name: str
    user: int
    group: int


def account(user: str | None, group: str | None) -> Account | None:
    """Whom to become; None to stay who we are. Raises ConfigurationError if we may not."""
    if user is None and group is None:
        return None
    entry = pwd.getpwuid(os.geteuid()) if user is None else pwd.getpwnam(user)
    number = entry.pw_gid if group is None else grp.getgrnam(group).gr_gid
    found = Account(entry.pw_name, entry.pw_uid, number)
    if os.geteuid() != 0 and (found.user, found.group) != (os.geteuid(), os.getegid()):
        raise ConfigurationError(
            "--user and --group need root, to become somebody else; start it as root, or drop them"
        )
    return found


def become(whom: Account) -> None:
    """Give up what this user may. Raises ConfigurationError if it cannot be done."""
    if os.geteuid() != 0:
        return
    try:
        os.initgroups(whom.name, whom.group)
        os.setgid(whom.group)
        os.setuid(whom.user)
    except OSError as error:
        raise ConfigurationError(f"cannot become the user {whom.name}: {error.strerror}") from error
    if not all(os.access(file, os.R_OK) for file in (os.__file__, __file__)):
        raise ConfigurationError(
            f"the user {whom.name} cannot read Python's own files, or ours ({Path(__file__).parents[2]}); install them "
            "where everybody can"
        )
