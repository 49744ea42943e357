"""Asking a PostgreSQL what room it has for connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pooldrain.budget import Room

LIMITS = """
SELECT current_setting('server_version'), current_user, r.rolsuper, d.datname,
       current_setting('max_connections')::int,
       current_setting('superuser_reserved_connections')::int,
       coalesce(current_setting('reserved_connections', true), '0')::int,
       EXISTS (SELECT 1 FROM pg_roles p WHERE p.rolname = 'pg_use_reserved_connections'
               AND pg_has_role(current_user, p.oid, 'USAGE')),
       r.rolconnlimit, d.datconnlimit
FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()
"""

# Sessions of others: those of our processes say so, as the same user in the same database.
OTHERS = """
SELECT coalesce(usename, '?'), coalesce(nullif(application_name, ''), '(no application_name)'),
       usename = current_user, datname = current_database(), count(*)
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
  AND NOT coalesce(usename = current_user AND datname = current_database()
                   AND application_name LIKE 'pooldrain:%', false)
GROUP BY 1, 2, 3, 4
"""


def room_from(limits: Sequence[Any], others: Sequence[Sequence[Any]]) -> Room:
    """What the rows of the two queries say."""
    version, user, superuser, database, most, for_superusers, for_some, is_one_of_them, of_role, of_database = limits
    reserved = 0 if superuser else for_superusers + (0 if is_one_of_them else for_some)
    by_name: dict[str, int] = {}
    for who, application, _, _, number in others:
        name = f"{application} as {who}"
        by_name[name] = by_name.get(name, 0) + number
    return Room(
        version=version,
        user=user,
        superuser=superuser,
        database=database,
        max_connections=most,
        reserved=reserved,
        role_limit=None if of_role < 0 else of_role,
        database_limit=None if of_database < 0 else of_database,
        others=by_name,
        others_of_role=sum(number for *_, same_user, _, number in others if same_user),
        others_of_database=sum(number for *_, same_database, number in others if same_database),
    )
