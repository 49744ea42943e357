"""gunicorn's threaded worker, with a drain (patches internals of gunicorn 27.0.1's gthread).

What the stock worker does at a shutdown, and this one does not: it stops accepting, so that whatever the kernel
still queues is reset; it gives every new connection a thread before a byte has come; it closes connections with
a wait of up to 2 s on its main thread; it drops an application's wish to close a connection. Here new
connections wait in the poller; while draining, requests are refused by threads of their own; a response says
close when its headers are built; and connections linger in the poller.
"""

from __future__ import annotations

import contextlib
import logging
import re
import selectors
import signal
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from gunicorn.http.parser import Parser
from gunicorn.http.wsgi import Response
from gunicorn.workers.gthread import TConn, ThreadWorker

from pooldrain.exit_codes import ExitCode
from pooldrain.gate import CLIENT, CLOSE_CONNECTION, CURRENT_RESERVATION, Reservation
from pooldrain.problems import INTERNAL_ERROR, invalid_request
from pooldrain.runtime.listener import (
    ACCEPT_BATCH,
    ACCEPT_PAUSE,
    BACKLOG,
    BROKEN_PAUSE,
    FIRST_BYTES,
    IDLE_LIMIT,
    LINGER_LIMIT,
    REFUSING_THREADS,
    AcceptExhausted,
    accepted,
    drop_new_connections,
    has_arrived,
)
from pooldrain.runtime.master.worker import ManagedWorker
from pooldrain.runtime.process.exit import fast_exit, told_in_one_line
from pooldrain.shutdown import ShutdownReport, Stop
from pooldrain_sync.servers.gunicorn.response import (
    ClientSocket,
    DrainBody,
    DrainResponse,
    Interruption,
    refusal_status,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from pooldrain_sync.assembly import BuiltService

logger = logging.getLogger("pooldrain")

# Bytes read at a time, and bytes of a head after which the parser shall say what it thinks of it.
RECEIVE = 65536
LONGEST_HEAD = 65536


class DrainConnection(TConn):
    """A connection, with what has come of its next request, and the promise made to its current one."""

    sock: ClientSocket
    first_bytes_until = 0.0  # monotonic seconds; until then a new client is about to send
    head = b""  # bytes read in the main loop: a request is handed on once its head is complete
    reservation: Reservation | None = None


class DrainWorker(ManagedWorker, ThreadWorker):
    """The worker: its loop serves until the runner's shutdown is over."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_keepalived = self.worker_connections  # threads do not hold connections here
        self._service: BuiltService | None = None
        self._refusing: ThreadPoolExecutor | None = None
        self._probe = re.compile(rb"(?!)")  # the request lines of probes, once it is known what they are
        self._probes: dict[bytes, ThreadPoolExecutor] = {}  # by path: one that hangs does not keep the others
        self._interruption: Interruption | None = None
        self._lingering: dict[TConn, float] = {}
        self._accepts = True  # False once the end has begun
        self._accept_again_at = 0.0  # monotonic seconds, if not 0; nothing is accepted until then
        self._crowd = 0  # or until there are fewer connections than this
        self._retires = False  # whether it leaves its service to other workers
        self._stop: Stop | None = None
        self._stopped = threading.Event()
        self._shutdown: threading.Thread | None = None
        self._report: ShutdownReport | None = None

    @property
    def service(self) -> BuiltService:
        """The service of this process."""
        assert self._service is not None, "built by load_wsgi"
        return self._service

    @property
    def interruption(self) -> Interruption:
        """What ends this process's waits for its clients; made after the fork."""
        if self._interruption is None:
            self._interruption = Interruption()
        return self._interruption

    # --- start ----------------------------------------------------------------------------------------------

    def load_wsgi(self) -> None:
        """Build and open the service, in this process. A failure ends the worker with one line."""
        with told_in_one_line(self.app.settings.service):
            # After the fork: a master without frameworks has less to tear down when everything waits for its exit.
            from pooldrain_sync.assembly import build

            self._service = self.app.preloaded or build(self.app.settings, self.app.url)
            with self.guarded_start():
                self.service.runner.open()
        self.wsgi: Any = _with_close_hook(self.service.app)
        if paths := self.service.runner.probes.uncounted:
            each = b"|".join(re.escape(path.encode()) for path in sorted(paths))
            self._probe = re.compile(rb"(?:GET|HEAD) (%s)[ ?]" % each)

    def run(self) -> None:
        """Serve until a signal has led to the end, then leave the process."""
        wakeup = self.method_queue.fileno()
        assert wakeup is not None
        self.poller.register(wakeup, selectors.EVENT_READ, self.method_queue.run_callbacks)
        self.set_accept_enabled(True)
        listening = self.app.ground.listening(self.take_listener())
        self.accepts_requests()  # first: who reads that we listen may send SIGHUP
        self.service.runner.events.emit(listening)
        self.poller.register(self.watch, selectors.EVENT_READ, self._woken)
        self._attend_signals()
        while not self._stopped.is_set():
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - whatever it is, what it serves is to be ended in order
                self._broken(error)
        assert self._shutdown is not None
        self._shutdown.join()
        fast_exit(ExitCode.DISPOSE_FAILED if self._report is None else self._report.exit_code)

    # --- what the runner asks for, in its thread ------------------------------------------------------------

    def drain(self) -> None:
        """From now on requests are refused: keep them off the busy threads."""
        self._refusing = ThreadPoolExecutor(REFUSING_THREADS, "pooldrain-refuse")

    def cancel(self) -> None:
        """From now on no request waits for its client any more, or for a thread: those that do are refused."""
        self.interruption.set()
        self.method_queue.defer(partial(self.tpool.shutdown, wait=False, cancel_futures=True))

    def stop(self, step: Stop) -> None:
        """Answer what is queued, close the listener and every connection; return when done."""
        self._stop = step
        self._wake()
        self._stopped.wait(step.limit + BROKEN_PAUSE - time.monotonic())  # less, unless the loop is broken

    def retire(self) -> None:
        """Leave new clients to the other workers; close, after a while, the connections on which nothing comes."""
        self.method_queue.defer(self._leave_listener)

    def rejoin(self) -> None:
        """Take new clients again: the whole service ends, and they are to be told."""
        self.method_queue.defer(self._return_to_listener)

    @property
    def connected(self) -> bool:
        """Whether it has clients."""
        return self._accepts or self.nr_conns > 0 or bool(self._lingering)

    def _shut_down(self) -> None:
        try:
            self._report = self.service.runner.shut_down(self, retiring=self)
            self.leave_report(self._report)
        finally:
            self._stopped.set()
            self._wake()

    # --- the loop -------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self.notify()
        if self._accepts:
            self.set_accept_enabled(self.nr_conns < self.worker_connections and self._has_room())
        self.wait_for_and_dispatch_events(self._patience())
        self.mind_master()
        if self.watch.received:
            self._attend_signals()
        self._close_idle()
        self._close_lingering()
        if self._stop is not None:
            self._stop_once_quiet(self._stop)

    def _broken(self, error: Exception) -> None:
        """A turn has failed: tell it, and end in order, which the turns that still succeed help with."""
        self.service.runner.failed("the server's loop", error)
        if not self.watch.received:
            self.watch.handle(signal.SIGTERM)
        with contextlib.suppress(Exception):
            self._attend_signals()
        self._stopped.wait(BROKEN_PAUSE)

    def _wake(self) -> None:
        self.method_queue.defer(lambda: None)

    def look_again(self) -> None:
        """What the master has to say may have changed."""
        self.service.runner.look_again()

    def _woken(self, watch: object) -> None:
        self.watch.drain()
        self._attend_signals()
        self.look_again()

    def _has_room(self) -> bool:
        """Whether accepting is not paused, for want of descriptors."""
        if self._accept_again_at and (time.monotonic() >= self._accept_again_at or self.nr_conns < self._crowd):
            self._accept_again_at = 0.0
        return not self._accept_again_at

    def _attend_signals(self) -> None:
        for name in self.watch.take_ignored():
            self.service.runner.signal_ignored(name)
        for name in self.due_signals(time.monotonic()):
            self.service.runner.signalled(name)
        if self._told and self._shutdown is None:
            shutdown = threading.Thread(target=self._shut_down, name="pooldrain-shutdown")
            shutdown.start()  # if there is no room for it: at the next turn
            self._shutdown = shutdown

    def _patience(self) -> float:
        """How long to wait for events, in seconds."""
        now = time.monotonic()
        instants = [now + 1.0, now + (self.patience(now) or 1.0), *self._lingering.values()]
        if self._accepts and self._accept_again_at > now:
            instants.append(self._accept_again_at)
        if self._stop is not None:
            instants.append(self._stop.deadline)
        return max(0.001, min(instants) - now)

    def _leave_listener(self) -> None:
        self._retires, self._accepts = True, False
        self.set_accept_enabled(False)
        self.cfg.set("keepalive", IDLE_LIMIT)  # of this process alone
        limit = time.monotonic() + IDLE_LIMIT
        for conn in (*self.keepalived_conns, *self.pending_conns):
            conn.timeout = limit if conn.timeout is None else min(conn.timeout, limit)

    def _return_to_listener(self) -> None:
        self._retires, self._accepts = False, True

    def _close_idle(self) -> None:
        """Close the connections on which nothing has come for a while; of a worker that retires tell when none is left.

        In place of gunicorn's own, which closes them without a last look. The oldest are the first in their queues.
        """
        now = time.monotonic()
        for waiting in (self.keepalived_conns, self.pending_conns):
            if not waiting or not _expired(waiting[0], now):
                continue
            for conn in list(takewhile(lambda conn: _expired(conn, now), waiting)):
                assert isinstance(conn, DrainConnection)
                if (self._retires and conn.head) or has_arrived(conn.sock.fileno()):
                    continue  # it is served; or read in the next turn
                self.poller.unregister(conn.sock)
                waiting.remove(conn)
                self.nr_conns -= 1
                self._linger(conn)
        if self._retires and not self.connected:
            self.service.runner.look_again()

    def accept(self, listener: Any) -> None:
        """Accept a batch of connections; none for a while, if there is no room for them."""
        try:
            self._accept_from(listener, ACCEPT_BATCH)
            self.service.runner.can_accept()
        except AcceptExhausted as error:
            self.service.runner.cannot_accept(str(error))
            self._accept_again_at = time.monotonic() + ACCEPT_PAUSE
            self._crowd = self.nr_conns
            self.set_accept_enabled(False)

    def _accept_from(self, listener: Any, limit: int = BACKLOG) -> None:
        for client, address in accepted(listener, limit):
            self.nr_conns += 1
            sock = ClientSocket(client, self.interruption)
            connection = DrainConnection(self.cfg, sock, address, listener.getsockname())
            connection.first_bytes_until = time.monotonic() + FIRST_BYTES
            self._receive(connection)

    def on_pending_socket_readable(self, conn: TConn, client: socket.socket) -> None:
        """More bytes of a request have come, or the end of its connection."""
        self.poller.unregister(client)
        self.pending_conns.remove(conn)
        self._receive(conn)

    def on_client_socket_readable(self, conn: TConn, client: socket.socket) -> None:
        """The first bytes of the next request on a kept connection have come, or its end."""
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._receive(conn)

    def _receive(self, conn: TConn) -> None:
        """Read on; hand the request to a thread once its head is complete, so that a slow client holds none."""
        assert isinstance(conn, DrainConnection)
        try:
            data = conn.sock.recv(RECEIVE)
        except BlockingIOError:
            self._await_head(conn)
            return
        except OSError:
            data = b""
        if not data:
            self.nr_conns -= 1
            conn.close()
            return
        conn.head = (conn.head + data).lstrip(b"\r\n")  # empty lines before a request: RFC 9112, 2.2
        self._begin_request(conn)

    def _begin_request(self, conn: DrainConnection) -> None:
        """Hand the request to a thread, if its head is there; one that is too long, the parser will refuse."""
        if b"\r\n\r\n" in conn.head or len(conn.head) > LONGEST_HEAD:
            self.enqueue_req(conn)
        else:
            self._await_head(conn)

    def _await_head(self, conn: DrainConnection) -> None:
        if conn.timeout is None or not conn.head:
            conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def enqueue_req(self, conn: TConn) -> None:
        """Hand a request to a thread: a busy one, a refusing one, or the one that answers this probe."""
        assert isinstance(conn, DrainConnection)
        threads, conn.reservation = self._probing(conn.head), None
        if threads is None:
            conn.reservation = self.service.runner.reserve()
            threads = (self._refusing if conn.reservation is None else None) or self.tpool
        future = threads.submit(self.handle, conn)
        future.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    def _probing(self, head: bytes) -> ThreadPoolExecutor | None:
        """The thread for a probe: it is answered whatever the others do. None for any other request."""
        probe = self._probe.match(head)
        if probe is None or _has_body(head):
            return None
        path = probe[1]
        if path not in self._probes:
            self._probes[path] = ThreadPoolExecutor(1, "pooldrain-probe")
        return self._probes[path]

    def handle(self, conn: TConn) -> Any:
        """Serve one request, in a thread."""
        assert isinstance(conn, DrainConnection)
        reservation = conn.reservation
        token = CURRENT_RESERVATION.set(reservation)
        try:
            conn.sock.setblocking(True)
            conn.sock.next_request()
            conn.init()
            _parser(conn).unreader.unread(conn.head)
            conn.head = b""
            conn.data_ready = True
            return super().handle(conn)
        finally:
            CURRENT_RESERVATION.reset(token)
            if reservation is not None:
                self.service.runner.release(reservation)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer what is not valid HTTP as all servers do; and, in a thread, an error that nobody has caught."""
        status = refusal_status(exc)
        if status is None:
            logger.error("error while serving a request", exc_info=exc)
        else:
            logger.info("invalid request refused: %s", exc)
        assert isinstance(client, ClientSocket)
        client.answer_instead((INTERNAL_ERROR if status is None else invalid_request(status)).raw())

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """A thread is done with a request: keep the connection, or close it without waiting."""
        self.has_served(self.service.runner.gate.finished)
        assert isinstance(conn, DrainConnection)
        if fs.cancelled():  # no thread has become free for it
            if conn.reservation is not None:
                self.service.runner.release(conn.reservation)
            self.enqueue_req(conn)
            return
        if fs.exception() is None and fs.result():
            conn.sock.setblocking(False)
            conn.head = _parser(conn).unreader.take_buffered()  # of a pipelined request
            if conn.head:
                self._begin_request(conn)
            else:
                conn.set_timeout()
                self.keepalived_conns.append(conn)
                on_readable = partial(self.on_client_socket_readable, conn)
                self.poller.register(conn.sock, selectors.EVENT_READ, on_readable)
            return
        self.nr_conns -= 1
        self._linger(conn)

    def _linger(self, connection: TConn) -> None:
        """Close our half; the rest when the client has closed, so that unread bytes reset nothing on the wire."""
        try:
            connection.sock.setblocking(False)
            connection.sock.shutdown(socket.SHUT_WR)
            self.poller.register(connection.sock, selectors.EVENT_READ, partial(self._discard, connection))
        except (OSError, ValueError):  # the client, or a broken request's own handling, was first
            connection.close()
        else:
            self._lingering[connection] = time.monotonic() + LINGER_LIMIT

    def _discard(self, connection: TConn, client: socket.socket) -> None:
        try:
            left = client.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            left = b""
        if not left:
            self._close_lingering(connection)

    def _close_lingering(self, connection: TConn | None = None) -> None:
        """Close one lingering connection, or those that have lingered long enough."""
        now = time.monotonic()
        done = [c for c, until in self._lingering.items() if now >= until] if connection is None else [connection]
        for finished in done:
            del self._lingering[finished]
            self.poller.unregister(finished.sock)
            finished.close()

    # --- the end --------------------------------------------------------------------------------------------

    def _stop_once_quiet(self, step: Stop) -> None:
        if self._accepts:
            # What comes after this last look stays in the queue, for the other workers or for the master.
            self._accepts = False
            self.set_accept_enabled(False)
            for listener in self.sockets:
                if self.app.owns_listener:
                    drop_new_connections(listener)
                try:
                    self._accept_from(listener)
                except AcceptExhausted as error:  # what is left is for the others, or for the master
                    self.service.runner.cannot_accept(str(error))
        now = time.monotonic()
        stuck = len(self.service.runner.gate.in_flight)  # cut requests whose threads never came back
        if (self.nr_conns - stuck > 0 or self._lingering) and now < step.deadline:
            return
        self.wait_for_and_dispatch_events(0)  # what has arrived by now is read, and so not reset
        about_to_send = sum(_about_to_send(conn, now) for conn in self.pending_conns)
        idle = len(self.keepalived_conns) + len(self.pending_conns) - about_to_send
        busy = self.nr_conns - idle - stuck
        if busy > 0 and now < step.limit:
            return
        for conn in (*self.keepalived_conns, *self.pending_conns):
            conn.close()  # now, and not by the process's end: the report needs a descriptor, too
        self._stopped.set()


def _expired(conn: TConn, now: float) -> bool:
    return conn.timeout is not None and now >= conn.timeout


def _has_body(head: bytes) -> bool:
    """Whether a request has a body, for which a thread would wait."""
    lowered = head.lower()
    return b"\ncontent-length:" in lowered or b"\ntransfer-encoding:" in lowered


def _about_to_send(conn: TConn, now: float) -> bool:
    """Whether a client has only just connected."""
    return isinstance(conn, DrainConnection) and not conn.head and now < conn.first_bytes_until


def _parser(conn: DrainConnection) -> Parser:
    assert isinstance(conn.parser, Parser), "HTTP/1: nothing else is configured"
    return conn.parser


def _with_close_hook(app: WSGIApplication) -> WSGIApplication:
    """`app`, with a way to have gunicorn close the connection: it drops an application's own Connection header."""

    def hooked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        response = getattr(start_response, "__self__", None)  # gunicorn's Response, whose method this is
        if isinstance(response, Response):
            response.__class__ = DrainResponse
            environ["wsgi.input"].__class__ = DrainBody
            environ[CLIENT] = response
            environ[CLOSE_CONNECTION] = response.force_close
        return app(environ, start_response)

    return hooked
