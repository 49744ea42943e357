"""When a database server has no room for another connection: how it says so, and how long to leave it alone."""

from __future__ import annotations

# SQLSTATE too_many_connections. A libpq that cannot connect tells no state, only the server's text.
_STATE = "53300"
_TEXTS = (
    "remaining connection slots are reserved",
    "too many clients already",
    "too many connections for",  # a role, or a database
    "no more connections allowed",  # PgBouncer's max_client_conn, and older poolers
    "gave it no server connection",  # ours: see `pooler`
)

# Seconds between two attempts to connect to a server that has refused one.
PAUSE = 1.0


def refuses_more(error: BaseException) -> bool:
    """Whether this error of a driver says that the server, or a pooler, has no room for another connection."""
    if getattr(error, "sqlstate", None) == _STATE:
        return True
    text = str(error)
    return any(each in text for each in _TEXTS)
