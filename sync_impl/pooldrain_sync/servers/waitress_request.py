"""A request as waitress's channels and tasks want to see it, read by the parser of the other threaded server."""

from __future__ import annotations

import tempfile
from typing import IO, Any

from waitress.utilities import BadRequest

from pooldrain.answers import Answer
from pooldrain.in_flight import InFlightRequest
from pooldrain_sync.engine.request import Request

# Bytes of a body that are kept in memory; a longer one goes to a file, as it does with waitress's own parser.
BODY_IN_MEMORY = 512 * 1024


class SpooledRequest(Request):
    """A request whose whole body is read before a thread serves it."""

    _spool: IO[bytes] | None = None

    def keep(self, body: bytes) -> None:
        """A part of its body has come."""
        if self._spool is None:
            self._spool = tempfile.SpooledTemporaryFile(BODY_IN_MEMORY)  # noqa: SIM115 - `close` does
        self._spool.write(body)
        self.kept += len(body)

    @property
    def input(self) -> Any:
        """Its body, once it is complete, as a file."""
        if self._spool is None:
            return super().input
        self._spool.seek(0)
        return self._spool

    def close(self) -> None:
        """Let the body go."""
        if self._spool is not None:
            self._spool.close()


class DrainRequest:
    """What waitress asks of its own parser, and what the gate has to know."""

    empty = False
    admitted: InFlightRequest | None = None  # before its body had come
    answer: Answer | None = None  # what it gets without being served
    error: Any = None  # one of waitress's, if it is not served

    def __init__(self, request: SpooledRequest | None = None) -> None:
        """`request`: whose head has come; None if what has come is no request."""
        self.request = request or SpooledRequest()
        self.version = self.request.version
        self.completed = self.request.complete
        self.headers_finished = True
        self.expect_continue = self.request.expects and not self.completed
        # All that waitress reads of the headers: whether to keep the connection, in the words of the version.
        kept = "keep-alive" if self.version == "1.0" else ""
        self.headers = {"CONNECTION": kept if self.request.keep_alive else "close"}

    @property
    def command(self) -> str:
        """GET, POST ... Empty if what has come is no request."""
        return self.request.method

    @property
    def path(self) -> str:
        """As WSGI has it."""
        return self.request.path

    def complete_with(self, answer: Answer) -> None:
        """Wait for no more of it, and do not serve it."""
        self.answer = answer
        self.error = BadRequest("not served")
        self.expect_continue = False
        self.completed = True

    def close(self) -> None:
        """Let its body go."""
        self.request.close()
