"""Which problem document an error becomes, and what of it the log says."""

from __future__ import annotations

import logging

from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pooldrain.answers import Answer
from pooldrain.errors import InvalidRequest, PoolClosed, describe_error
from pooldrain.in_flight import CURRENT_REQUEST
from pooldrain.problems import (
    CUT,
    DATABASE_UNAVAILABLE,
    INTERNAL_ERROR,
    POOL_CLOSED,
    POOL_EXHAUSTED,
    Failure,
    invalid_request,
)
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.pool import FAILURE, PoolExhausted, mark

logger = logging.getLogger("pooldrain")

READ_ONLY = "25006"  # SQLSTATE read_only_sql_transaction: after a failover, until connections reach the new primary


def explain_error(error: Exception, route: str) -> Answer:
    """The answer for an error that a handler let through. Only one nobody expects is logged with its traceback."""
    request = CURRENT_REQUEST.get()
    if request is not None and request.cancelled:
        return CUT  # we made it fail ourselves; the gate tells the client so
    if isinstance(error, InvalidRequest):
        return invalid_request()
    failure = failure_of(error)
    if failure is None and isinstance(error, DBAPIError) and is_temporary(error):
        failure = DATABASE_UNAVAILABLE
    if failure is None:
        logger.error("%s failed", route, exc_info=error)
        return INTERNAL_ERROR
    tell_failure(error, route)
    return failure.answer(request)


def failure_of(error: BaseException) -> Failure | None:
    """What kept a request from its database, if this error, or what it was raised from, says so."""
    told: BaseException | None = error
    for _ in range(10):  # causes may go in circles
        if told is None:
            return None
        if isinstance(told, PoolClosed):
            return POOL_CLOSED
        if isinstance(told, PoolTimeout):
            return POOL_EXHAUSTED
        marked = getattr(told, FAILURE, None)
        if isinstance(marked, Failure):
            return marked
        told = told.__cause__
    return None


def tell_failure(error: BaseException, route: str) -> None:
    """Log in one line that a request failed for want of its database."""
    if not isinstance(error, PoolClosed | PoolExhausted):  # the pool has told of it, with who holds its connections
        logger.warning("%s: %s", route, describe_error(getattr(error, "orig", None) or error))


def note_failure(context: ExceptionContext) -> None:
    """A listener for SQLAlchemy's `handle_error`: a connection that was refused, or lost, is noted on its request."""
    error = context.sqlalchemy_exception
    if not isinstance(error, DBAPIError) or not is_temporary(error):
        return
    read_only = getattr(error.orig, "sqlstate", None) == READ_ONLY
    if context.is_disconnect or context.connection is None or read_only:
        mark(error, DATABASE_UNAVAILABLE)


def is_temporary(error: DBAPIError) -> bool:
    """Whether it is the database's trouble, and may be over when the client tries again."""
    return isinstance(error, OperationalError | InterfaceError) or getattr(error.orig, "sqlstate", None) == READ_ONLY


def startup_problem(url: DatabaseUrl, error: Exception, what: str = "cannot connect to") -> str:
    """Why the database cannot be used, in one line, with the password masked."""
    reason = " ".join(str(getattr(error, "orig", None) or error).split())
    return f"{what} {url.masked}: {url.mask(reason)}"
