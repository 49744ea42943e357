"""Which problem document an error becomes, and what of it the log says."""

from __future__ import annotations

import logging

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pooldrain.answers import Answer
from pooldrain.errors import InvalidRequest, PoolClosed, describe_error
from pooldrain.in_flight import CURRENT_REQUEST
from pooldrain.problems import DATABASE_UNAVAILABLE, INTERNAL_ERROR, POOL_CLOSED, POOL_EXHAUSTED, invalid_request
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.pool import PoolExhausted

logger = logging.getLogger("pooldrain")

READ_ONLY = "25006"  # SQLSTATE read_only_sql_transaction: after a failover, until connections reach the new primary


def explain_error(error: Exception, route: str) -> Answer:
    """The answer for an error that a handler let through. Only one nobody expects is logged with its traceback."""
    request = CURRENT_REQUEST.get()
    if request is not None and request.cancelled:
        return POOL_CLOSED  # we made it fail ourselves; the gate tells the client so
    if isinstance(error, PoolClosed):
        return POOL_CLOSED
    if isinstance(error, InvalidRequest):
        return invalid_request()
    if isinstance(error, PoolExhausted):
        return POOL_EXHAUSTED  # the pool has told of it, with who holds its connections
    if isinstance(error, PoolTimeout):  # of an engine of the application's own
        logger.warning("%s: %s", route, describe_error(error))
        return POOL_EXHAUSTED
    if isinstance(error, DBAPIError) and is_temporary(error):
        logger.warning("%s: %s", route, describe_error(error.orig or error))
        return DATABASE_UNAVAILABLE
    logger.error("%s failed", route, exc_info=error)
    return INTERNAL_ERROR


def is_temporary(error: DBAPIError) -> bool:
    """Whether it is the database's trouble, and may be over when the client tries again."""
    return isinstance(error, OperationalError | InterfaceError) or getattr(error.orig, "sqlstate", None) == READ_ONLY


def startup_problem(url: DatabaseUrl, error: Exception, what: str = "cannot connect to") -> str:
    """Why the database cannot be used, in one line, with the password masked."""
    reason = " ".join(str(getattr(error, "orig", None) or error).split())
    return f"{what} {url.masked}: {url.mask(reason)}"
