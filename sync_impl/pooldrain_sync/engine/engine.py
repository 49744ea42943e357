"""The engine: its threads, its connections, and what the main thread sees to when all of them are busy.

How a connection is passed on: it is in `waiting` while the poller waits for its client to send, and whoever takes it
out of there owns it, be it the thread that the poller has woken, or the main thread, whose patience has ended. What is
kept of an answer is in `sending`; a connection whose answers are over is in `lingering` until its client has closed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pooldrain.answers import Answer
from pooldrain.errors import InvalidRequest
from pooldrain.gate import CLIENT, CLOSE_CONNECTION, CURRENT_RESERVATION
from pooldrain.policy import HttpPolicy
from pooldrain.problems import CUT, INTERNAL_ERROR, invalid_request, refusal
from pooldrain.runtime.listener import (
    ACCEPT_BATCH,
    BACKLOG,
    FIRST_BYTES,
    IDLE_LIMIT,
    LINGER_LIMIT,
    STALLED,
    AcceptExhausted,
    Listener,
    Listeners,
    accepted,
    has_arrived,
    server_address,
)
from pooldrain_sync.engine.connection import Connection, Interruption
from pooldrain_sync.engine.exchange import SOFTWARE, Exchange, FileWrapper
from pooldrain_sync.engine.lookout import Lookout
from pooldrain_sync.engine.poller import make_poller
from pooldrain_sync.engine.request import BODY_KEPT, Request, StreamedBody, at, base_environ, client_address, environ_of
from pooldrain_sync.engine.threads import ServingThreads
from pooldrain_sync.engine.tls import TlsSocket
from pooldrain_sync.middleware import readable
from pooldrain_sync.runner import Runner

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

logger = logging.getLogger("pooldrain")

# Requests of one connection that are served in a row before others have their turn.
IN_A_ROW = 8

# What an application raises when its client has left, whatever it raises it from.
_LEFT = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})


class Engine:
    """The threads and connections of one process."""

    def __init__(
        self,
        app: WSGIApplication,
        runner: Runner,
        listener: Listener,
        *,
        threads: int,
        slots: int,
        several: bool,
        served: Callable[[], None],
        http: HttpPolicy,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`several`: whether there are other processes; `served` is called after each request."""
        self._app = app
        self._runner = runner
        self.listener = listener
        self._threads = threads
        self._served = served
        self._proxies = http.trusted_proxies or None
        self._limits = http.limits
        self._base = base_environ(server_address(listener), SOFTWARE, http.root_path)
        self._tls = tls
        self._base["wsgi.url_scheme"] = "http" if tls is None else "https"
        self._base["wsgi.multiprocess"] = several
        self._base["wsgi.file_wrapper"] = FileWrapper
        self._interruption = Interruption()
        self._poller = make_poller()
        self.lookout = Lookout(threads, slots)
        self.slots = self.lookout.slots
        self._serving = ServingThreads(
            self._poller, self.slots, attend=self.event, serve=self._serve_all, failed=self._close_failed
        )
        self._conns: dict[int, Connection] = {}
        self.waiting: dict[Connection, float] = {}  # until when (monotonic seconds)
        self._sending: dict[Connection, None] = {}
        self.lingering: dict[Connection, float] = {}  # until when
        self._probing: dict[str, ThreadPoolExecutor] = {}  # by path: one that hangs does not keep the others
        self._idle_limit = http.keep_alive
        self._accepts = False
        self._listens = False  # whether the poller will tell of the next client
        self._polled = False  # whether it knows the listener
        self.crowd: int | None = None  # how many connections there were when there was no room for another
        self.failed: OSError | None = None  # the listener
        listener.setblocking(False)

    def start(self) -> None:
        """Start the threads, and accept."""
        for number in range(self._threads):
            threading.Thread(target=self._serving.work, name=f"pooldrain-{number}", daemon=True).start()
        self.accept(True)

    # --- the threads ------------------------------------------------------------------------------------------

    def event(self, fd: int) -> Connection | None:
        """Something has happened on a descriptor; a connection with a request that is to be served now."""
        conn = self._conns.get(fd)
        if conn is None:
            if fd == self.listener.fileno():
                self._listens = False
                if self._accepts:
                    self._accept_some()
            return None
        if self.waiting.pop(conn, None) is not None:
            return self._read(conn)
        if conn in self._sending:
            return self._flush(conn)
        if conn in self.lingering:
            self._discard(conn)
        return None

    def _serve_all(self, conn: Connection) -> None:
        """Serve what has come on a connection."""
        following: Connection | None = conn
        for _ in range(IN_A_ROW):
            following = self._serve(conn)
            if following is None:
                return
        self._serving.queue(conn)

    def _serve(self, conn: Connection) -> Connection | None:
        request = conn.requests[0]
        path = request.path
        if path in self._runner.probes.uncounted:
            answer = self._runner.probes.answer(request.method, path, self._runner.phase)
            if answer is None:
                self._serve_apart(conn, path)
                return None
            return self._answer(conn, answer)
        return self._run(conn, request)

    def _serve_apart(self, conn: Connection, path: str) -> None:
        """Have a probe that the application answers served by a thread of its own."""
        if path not in self._probing:
            self._probing[path] = ThreadPoolExecutor(1, "pooldrain-probe")
        self._probing[path].submit(self._serve_probe, conn)

    def _serve_probe(self, conn: Connection) -> None:
        try:
            if self._run(conn, conn.requests[0]) is not None:
                self._serving.queue(conn)
        except Exception as error:
            logger.error("a connection failed", exc_info=error)
            self._close(conn)

    def _run(self, conn: Connection, request: Request) -> Connection | None:
        """Have the application serve a request; the connection, if the next one is to be served now."""
        exchange = Exchange(conn, request)
        conn.begun = False
        environ = environ_of(conn.base or self._base, request, conn.peer, self._proxies)
        environ["wsgi.input"] = request.input if request.complete else self._streamed(conn, request)
        environ[CLIENT] = exchange
        environ[CLOSE_CONNECTION] = exchange.force_close
        reservation = request.reservation
        if reservation is not None:
            CURRENT_RESERVATION.set(reservation)
        failure: Answer | None = None
        failed = True
        try:
            body = self._app(environ, exchange.start_response)
            try:
                for chunk in body:
                    if chunk:
                        exchange.write(chunk)
                exchange.finish()
            finally:
                close = getattr(body, "close", None)
                if close is not None:
                    close()
            failed = False
        except InvalidRequest as error:
            logger.info("invalid request refused: %s", error)
            failure = invalid_request(error.status)
        except BaseException as error:
            if not (isinstance(error, OSError) and error.errno in _LEFT):
                logger.error("error while serving a request", exc_info=error)
                failure = INTERNAL_ERROR
        finally:
            if reservation is not None:
                CURRENT_RESERVATION.set(None)
                self._runner.release(reservation)
        if failed:
            exchange.force_close()
            if failure is not None and not conn.begun:
                with contextlib.suppress(OSError):
                    self._send_answer(conn, request, failure)
        return self._end(conn, keep=exchange.keeps and not conn.answered_for)

    def _streamed(self, conn: Connection, request: Request) -> Any:
        if request.expects:
            request.expects = False
            conn.send_interim()
        return io.BufferedReader(StreamedBody(request, conn.more))

    def _send_answer(self, conn: Connection, request: Request, answer: Answer) -> Exchange:
        exchange = Exchange(conn, request)
        if not self._runner.gate.keep_alive:
            exchange.force_close()
        try:
            exchange.answer(answer)
        except OSError:  # its client has left
            exchange.force_close()
        return exchange

    def _answer(self, conn: Connection, answer: Answer) -> Connection | None:
        """Answer the next request of a connection without a thread."""
        request = conn.requests[0]
        conn.begun = False
        exchange = self._send_answer(conn, request, answer)
        admitted = request.admitted
        if admitted is not None and not admitted.ended:
            admitted.status = answer.status
            conn.when_sent(lambda: self._runner.finish(admitted))
        return self._end(conn, keep=exchange.keeps)

    def _end(self, conn: Connection, *, keep: bool) -> Connection | None:
        """The answer to a connection's next request is over; the connection, if the one after it can be served."""
        conn.requests.popleft()
        self._served()
        return self._after(conn) if conn.end_exchange(keep=keep) else None

    def _after(self, conn: Connection) -> Connection | None:
        """All of an answer is sent."""
        if conn.keep and not conn.broken:
            return self._look_at(conn)
        self._linger(conn, told=True)
        return None

    # --- reading ----------------------------------------------------------------------------------------------

    def _read(self, conn: Connection) -> Connection | None:
        """Read on; the connection, if it has a request to be served."""
        try:
            if not conn.receive():
                self._lost(conn)
                return None
        except BlockingIOError:
            self._await(conn)
            return None
        except InvalidRequest as error:
            conn.invalid = error
        return self._look_at(conn)

    def _look_at(self, conn: Connection) -> Connection | None:
        """What has come: the connection, if it has a request to be served; else it waits, or has been refused."""
        if not conn.requests:
            if conn.invalid is not None:
                self._refuse_invalid(conn, Request())
            else:
                self._await(conn)
            return None
        request = conn.requests[0]
        if request.complete:
            return conn
        if conn.invalid is not None:
            self._refuse_invalid(conn, request)
            return None
        if request.admitted is None and request.path not in self._runner.probes.uncounted:
            request.admitted = self._admit(conn, request)
            if request.admitted is None:
                return self._answer(conn, self._refusal(request))
        if request.kept >= BODY_KEPT:
            return conn
        if request.expects:
            request.expects = False
            conn.send_interim()
        self._await(conn)
        return None

    def _admit(self, conn: Connection, request: Request) -> Any:
        given_id = request.header(b"x-request-id")
        address = client_address(request, conn.peer[0], self._proxies) if self._runner.access is not None else ""
        return self._runner.admit(request.method, readable(request.path), given_id, address=address)

    def _refusal(self, request: Request) -> Answer:
        return refusal(request.header(b"accept"), ends_streams=self._runner.gate.ends_streams)

    def _refuse_invalid(self, conn: Connection, request: Request) -> None:
        """Answer what is no valid HTTP, as all servers do."""
        error = conn.invalid
        logger.info("invalid request refused: %s", error)
        conn.invalid = None
        if not conn.requests:
            conn.requests.append(request)
        following = self._answer(conn, invalid_request(getattr(error, "status", 400)))
        assert following is None, "it is not kept"

    def _await(self, conn: Connection) -> None:
        """Wait for its client to send."""
        if conn.parser.in_head and conn.head_until:
            until = conn.head_until  # a head has to be complete in time, however its bytes trickle in
        else:
            until = time.monotonic() + self._idle_limit
            conn.head_until = until if conn.parser.in_head else 0.0
        self.waiting[conn] = until
        self._arm(conn.fd)

    def _arm(self, fd: int, *, write: bool = False) -> None:
        try:
            self._poller.arm(fd, write=write)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOENT):  # closed by another thread: at the very end
                raise

    def _arm_to_send(self, conn: Connection) -> None:
        """Wait until its client takes more. Called under the connection's lock."""
        self._sending[conn] = None
        self._arm(conn.fd, write=True)

    def _flush(self, conn: Connection) -> Connection | None:
        with conn.lock:
            self._sending.pop(conn, None)
        return self._after(conn) if conn.flush() else None

    def _lost(self, conn: Connection) -> None:
        """Its client has left."""
        admitted = conn.requests[0].admitted if conn.requests else None
        conn.left = True
        self._close(conn)
        if admitted is not None and not admitted.ended:
            self._runner.finish(admitted)

    def _close_failed(self, conn: Connection | None) -> None:
        if conn is not None:
            self._close(conn)

    def _close(self, conn: Connection) -> None:
        if self._conns.get(conn.fd) is conn:
            self._poller.remove(conn.fd)
            del self._conns[conn.fd]
        self._sending.pop(conn, None)
        self.lingering.pop(conn, None)
        conn.close()
        if self.crowd is not None:
            self.wake()  # there may be room

    def _linger(self, conn: Connection, *, told: bool = False) -> None:
        """Close our half; the rest when the client has closed, so that unread bytes reset nothing on the wire.

        At once, if it was `told` that we close, and has taken all: then it sends nothing that could be reset.
        """
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client was first
            self._close(conn)
            return
        conn.told = told
        if told and conn.has_taken_all:
            self._close(conn)
            return
        self.lingering[conn] = time.monotonic() + LINGER_LIMIT
        self._arm(conn.fd)

    def _discard(self, conn: Connection) -> None:
        try:
            left = conn.sock.recv(65536)
        except BlockingIOError:
            left = b"?"
        except OSError:
            left = b""
        if left:
            self._arm(conn.fd)
        else:
            self._close(conn)

    # --- accepting --------------------------------------------------------------------------------------------

    def accept(self, wanted: bool) -> None:
        """Accept connections, or no more of them."""
        self._accepts = wanted
        if wanted and not self._listens:
            self._listen()

    def _listen(self) -> None:
        self._listens, fd = True, self.listener.fileno()
        if self._polled:
            self._arm(fd)
        else:
            self._polled = True
            self._poller.add(fd)

    def _accept_some(self) -> None:
        try:
            self.accept_now(ACCEPT_BATCH)
            self._runner.can_accept()
        except AcceptExhausted as error:
            self._accepts, self.crowd = False, len(self._conns)
            self._runner.cannot_accept(str(error))
            self.wake()
            return
        except OSError as error:
            self.failed = error
            self.wake()
            return
        if self._accepts:
            self._listen()

    def accept_now(self, limit: int = BACKLOG) -> None:
        """Accept who is queued. Raises AcceptExhausted, OSError."""
        for client, peer in accepted(self.listener, limit):
            client.setblocking(False)
            server = server_address(client)
            with contextlib.suppress(OSError):  # it has left
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                sock = client if self._tls is None else TlsSocket(client, self._tls)
            except OSError:  # it has left
                client.close()
                continue
            conn = Connection(sock, peer[:2], self._interruption, self._arm_to_send, self._limits)
            if isinstance(self.listener, Listeners):
                conn.base = self._base | at(server)
            now = time.monotonic()
            conn.first_bytes_until = now + FIRST_BYTES
            self._conns[conn.fd] = conn
            self.waiting[conn] = now + self._idle_limit
            self._poller.add(conn.fd)

    # --- what the main thread sees to -------------------------------------------------------------------------

    def wake(self) -> None:
        """Wake the main thread."""
        self.lookout.wake()

    def attend(self) -> None:
        """The main thread is awake: see to what the others do not come to."""
        if self.lookout.look():
            self.take_over()

    def take_over(self) -> None:
        """Read what has come, answer what needs no thread, and queue the rest in the order in which it came."""
        self._serving.take_over(self._look_after)

    def _look_after(self, fd: int) -> None:
        conn = self.event(fd)
        while conn is not None:
            conn = self._hand_on(conn)

    def _hand_on(self, conn: Connection) -> Connection | None:
        request = conn.requests[0]
        if request.path in self._runner.probes.uncounted:
            return self._serve(conn)
        if request.admitted is None and request.reservation is None:
            request.reservation = self._runner.reserve()
            if request.reservation is None:
                self._admit(conn, request)  # which counts it as refused
                return self._answer(conn, self._refusal(request))
        self._serving.queue(conn)
        return None

    def close_idle(self) -> None:
        """Close the connections on which nothing moves any more."""
        now = time.monotonic()
        for conn, until in list(self.waiting.items()):
            if now < until or has_arrived(conn.fd) or self.waiting.pop(conn, None) is None:
                continue
            if conn.requests:
                self._lost(conn)
            else:
                self._linger(conn)
        for conn in list(self._sending):
            if now >= conn.moved_at + STALLED and conn.give_up():
                self._close(conn)
        self.close_lingering(now)

    def close_lingering(self, now: float) -> None:
        """Close those that have lingered long enough."""
        for conn, until in list(self.lingering.items()):
            if now >= until:
                self._close(conn)

    def close_taken(self) -> None:
        """Close those that linger although their clients have taken all."""
        for conn in list(self.lingering):
            if conn.told and conn.has_taken_all and self.lingering.pop(conn, None) is not None:
                self._close(conn)

    @property
    def lingers_until(self) -> float:
        """When the first of them has (monotonic seconds)."""
        return min(list(self.lingering.values()), default=float("inf"))

    def retire(self) -> None:
        """Keep connections on which nothing comes for a short while only."""
        self._idle_limit = min(self._idle_limit, IDLE_LIMIT)
        limit = time.monotonic() + IDLE_LIMIT
        for conn, until in list(self.waiting.items()):
            if conn in self.waiting:
                self.waiting[conn] = min(until, limit)

    @property
    def connected(self) -> int:
        """How many connections there are, lingering ones not counted."""
        return len(self._conns) - len(self.lingering)

    @property
    def has_room(self) -> bool:
        """Whether connections have been closed since there was no room for another."""
        return self.crowd is None or len(self._conns) < self.crowd

    def idle(self, now: float) -> int:
        """How many of them have nothing to be answered, and are not about to send for the first time."""
        return sum(not conn.requests and now >= conn.first_bytes_until for conn in list(self.waiting))

    # --- the end ----------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """From now on no request waits for its client any more. Thread-safe."""
        self._interruption.set()

    def cut(self) -> None:
        """Nothing waits for its client any more, or for a thread."""
        while (waiting := self._serving.next()) is not None:
            conn: Connection | None = waiting
            while conn is not None:
                conn = self._refuse_queued(conn)
        for conn in list(self.waiting):
            if conn.requests and self.waiting.pop(conn, None) is not None:
                conn.interrupted = True
                self._answer(conn, CUT)
        for conn in list(self._sending):
            with conn.lock:
                self._sending.pop(conn, None)
            over = conn.flush()
            if not over and conn.unsent:
                over = conn.give_up(interrupted=True)
            if over:
                self._after(conn)

    def _refuse_queued(self, conn: Connection) -> Connection | None:
        request = conn.requests[0]
        if request.reservation is not None:
            self._runner.release(request.reservation)
            self._admit(conn, request)  # which counts it as refused
        return self._answer(conn, self._refusal(request))

    def close_all(self) -> bool:
        """Close the connections on which nothing has come, and those that linger; False if something has."""
        for conn in list(self.waiting):
            if has_arrived(conn.fd):
                return False
            if self.waiting.pop(conn, None) is not None:
                self._close(conn)
        self.close_lingering(math.inf)
        return True
