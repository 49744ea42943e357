"""A service without a colour: what changes under its lock is told in that order, and wakes who waits."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pytest
import sqlalchemy

from pooldrain.gate import RequestGate, Reservation
from pooldrain.in_flight import CURRENT_REQUEST, InFlightRequest
from pooldrain.ledger import hold_as
from pooldrain.lifecycle import Lifecycle
from pooldrain.phases import Phase, PhaseError
from pooldrain.policy import LeakPolicy, PoolPolicy, ShutdownPolicy
from pooldrain.problems import CUT
from pooldrain.shutdown import (
    ConnectionCounts,
    CutRequest,
    Done,
    Outcome,
    PoolCounts,
    RequestCounts,
    ShutdownReport,
    Tally,
)
from pooldrain.sqla.database_url import DatabaseUrl
from pooldrain.sqla.pool import ClosableQueuePool
from pooldrain.sqla.tracked_pool import TrackedPool
from pooldrain.stacks import StackWalker
from pooldrain.status import PoolStatus
from pooldrain.transcript import Event


class Lock:
    """Stands for the shell's lock; entered again by its holder, as a re-entrant one allows."""

    held = 0

    def __enter__(self) -> None:
        self.held += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.held -= 1


class Events:
    """Keeps what is emitted, and which of it outside the lock."""

    def __init__(self, lock: Lock) -> None:
        self.detailed = True
        self.seen: list[dict[str, Any]] = []
        self.outside: set[str] = set()
        self._lock = lock

    def emit(self, event: Event) -> None:
        self.seen.append(event.as_dict())
        if not self._lock.held:
            self.outside.add(event.name)

    @property
    def names(self) -> list[str]:
        return [event["event"] for event in self.seen]

    def take(self, name: str) -> dict[str, Any]:
        """The one event of this name, without the name."""
        (event,) = [dict(event) for event in self.seen if event["event"] == name]
        del event["event"]
        return event


class Pool(TrackedPool):
    """A pool of books only."""

    numbers = PoolStatus(10, 0, 0, 10)
    closed = False

    def __init__(self, world: World, leaks: LeakPolicy) -> None:
        url = DatabaseUrl.parse("sqlite:///never-opened.db")
        super().__init__(
            sqlalchemy.create_engine(url.sync_url, poolclass=ClosableQueuePool),
            "main",
            url=url,
            policy=PoolPolicy(),
            leaks=leaks,
            events=world.events,
            service="test",
            lock=world.lock,
            clock=world.clock,
        )

    @property
    def status(self) -> PoolStatus:
        return self.numbers

    def close(self) -> None:
        self.closed = True


class World:
    """A service, and everything around it that a test wants to move or to see."""

    def __init__(self, *leaks: LeakPolicy) -> None:
        self.now = 100.0
        self.lock = Lock()
        self.events = Events(self.lock)
        self.woken = 0
        self.pools = [Pool(self, policy) for policy in leaks or [LeakPolicy()]]
        self.pool = self.pools[0]
        self.service = WokenService(self)

    def clock(self) -> float:
        return self.now

    def admit(self, path: str = "/work", given_id: str | None = "abc") -> InFlightRequest:
        request = self.service.admit("GET", path, given_id)
        assert request is not None
        return request

    def end(self, request: InFlightRequest, status: int | None = 200) -> None:
        request.status = status
        self.service.finish(request)

    def leak(self, request: InFlightRequest, pool: int = 0) -> None:
        """Check a connection out on behalf of `request`, and never return it."""
        token = CURRENT_REQUEST.set(request)
        self.pools[pool].ledger.check_out(object(), self.now, (), None, object)
        CURRENT_REQUEST.reset(token)


class WatchedGate(RequestGate):
    """Sees to it that its methods are called with the lock held, as its module asks for."""

    def __init__(self, lock: Lock) -> None:
        super().__init__()
        self._lock = lock

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if callable(found):
            assert super().__getattribute__("_lock").held, f"{name} is called without the lock"
        return found


class WokenService(Lifecycle[Pool, object]):
    """Counts how often its waiter was woken, which must happen under the lock."""

    def __init__(self, world: World) -> None:
        super().__init__(world.pools, ShutdownPolicy(), events=world.events, lock=world.lock, clock=world.clock)
        self._world = world
        self.gate = WatchedGate(world.lock)

    def changed_locked(self) -> None:
        assert self._world.lock.held
        self._world.woken += 1


@pytest.fixture(name="world")
def _world() -> World:
    return World()


# -- life


def test_a_service_starts_and_each_phase_is_told(world: World) -> None:
    phases = [world.service.phase]
    for phase in (Phase.STARTING, Phase.READY):
        world.service.enter(phase)
        phases.append(world.service.phase)
    assert phases == [Phase.STARTING, Phase.STARTING, Phase.READY]
    assert world.events.seen == [{"event": "phase", "phase": phase} for phase in ("STARTING", "READY")]


def test_a_phase_that_does_not_follow_the_one_before_raises_and_is_not_told(world: World) -> None:
    world.service.enter(Phase.STARTING)
    for phase in (Phase.STARTING, Phase.ANNOUNCING, Phase.CLOSED):
        with pytest.raises(PhaseError, match=f"{phase.value} does not follow STARTING"):
            world.service.enter(phase)
    assert world.service.phase is Phase.STARTING
    assert world.events.names == ["phase"]


def test_no_connection_is_kept_from_the_announcement_on(world: World) -> None:
    kept = []
    for phase in (Phase.STARTING, Phase.READY, Phase.ANNOUNCING):
        world.service.enter(phase)
        kept.append(world.service.gate.keep_alive)
    assert kept == [True, True, False]


def test_who_else_is_to_be_told_of_each_phase_is_told(world: World) -> None:
    told: list[Phase] = []
    world.service.followers.append(told.append)
    world.service.enter(Phase.STARTING)
    assert told == [Phase.STARTING]


def test_the_first_signal_counts_what_is_unanswered_and_wakes_who_waits(world: World) -> None:
    world.admit()
    world.admit().answered = True
    assert world.service.signalled("SIGTERM") is True
    assert world.woken == 1
    assert world.events.take("signal") == {"signal": "SIGTERM", "number": 1}
    assert not world.service.hurried
    assert world.service.tally().requests.in_flight_at_signal == 1


def test_a_second_signal_hurries_and_leaves_the_count_of_the_first(world: World) -> None:
    request = world.admit()
    world.service.signalled("SIGTERM")
    world.end(request)
    assert world.service.signalled("SIGINT") is False
    assert (world.woken, world.service.hurried) == (2, True)
    assert world.events.seen[-1] == {"event": "signal", "signal": "SIGINT", "number": 2}
    assert world.service.signals == ["SIGTERM", "SIGINT"]
    tally = world.service.tally()
    assert (tally.signals, tally.requests.in_flight_at_signal) == (2, 1)


# -- requests


def test_a_request_is_told_when_it_comes_and_when_it_is_over(world: World) -> None:
    request = world.admit()
    world.now += 0.25
    world.end(request)
    assert world.events.seen == [
        {"event": "request_admitted", "request": "abc", "route": "GET /work", "waited": False},
        {"event": "request_finished", "request": "abc", "route": "GET /work", "status": 200, "seconds": 0.25},
    ]


def test_a_refused_request_is_told_by_its_route_fit_to_be_printed(world: World) -> None:
    world.service.close_gate()
    assert world.service.admit("GET", "/a\nb", None) is None
    assert world.events.take("request_refused") == {"route": "GET /a\\nb"}


def test_a_request_that_waited_for_its_thread_is_told_as_such(world: World) -> None:
    with world.lock:
        reservation = world.service.gate.reserve()
    world.service.close_gate()
    assert world.service.admit("GET", "/", None, reservation) is not None
    assert world.events.take("request_admitted")["waited"] is True
    assert world.service.admit("GET", "/", None, Reservation()) is not None, "a promise is a promise"


def test_single_requests_are_not_told_where_nobody_wants_to_know(world: World) -> None:
    world.events.detailed = False
    world.end(world.admit())
    with world.lock:
        world.service.gate.close()
    assert world.service.admit("GET", "/", None) is None
    assert world.events.seen == []


def test_what_runs_a_request_is_passed_on(world: World) -> None:
    task = object()
    request = world.service.admit("GET", "/", None, worker=task)
    assert request is not None
    assert request.worker is task


def test_the_last_request_wakes_the_drain_and_no_other_does(world: World) -> None:
    first, second, third = world.admit(), world.admit(), world.admit()
    world.end(first)
    world.service.close_gate()
    world.end(second)
    assert world.woken == 0
    world.end(third)
    assert world.woken == 1


def test_a_request_that_still_holds_a_connection_leaks_it_by_name(world: World) -> None:
    request = world.admit("/db-test-leak")
    world.leak(request)
    world.now += 0.5
    world.end(request)
    leak = world.events.take("leak")
    assert (leak["rule"], leak["holding"]["holder"], leak["holding"]["age"]) == ("unreturned", "GET /db-test-leak", 0.5)


def test_what_outlives_a_request_is_no_leak(world: World) -> None:
    request = world.admit()
    world.leak(request)
    world.service.finish(request, lambda checkout: True)
    assert "leak" not in world.events.names


def test_the_threshold_is_flagged_as_long_as_it_lasts_and_asking_changes_nothing() -> None:
    world = World(LeakPolicy(leak_threshold=5))
    flags: list[bool] = []
    for checkedout in (4, 5, 5, 6, 0):
        world.pool.numbers = PoolStatus(10, checkedout, 0, 10 - checkedout)
        flags.append(world.service.check_threshold())
    assert flags == [False, True, True, True, False]
    assert world.events.names == []
    assert not any(world.pool.ledger.counts.values())


def test_the_threshold_is_told_under_the_lock_when_a_leak_brings_it_about() -> None:
    world = World(LeakPolicy(leak_threshold=2))
    for _ in range(3):
        request = world.admit("/db-test-leak")
        world.leak(request)
        world.end(request)
    assert world.events.take("leak_threshold") == {"checkedout": 2, "threshold": 2, "pool": "main"}
    assert "leak_threshold" not in world.events.outside


def test_a_look_that_fails_is_told_once_and_the_other_pools_are_looked_at(world: World) -> None:
    def broken() -> float:
        raise ValueError("no idea")

    vars(world.pool)["look"] = broken
    assert [world.service.look_at_pools() for _ in range(2)] == [1.0, 1.0]
    told = world.events.take("background_failed")
    assert (told["what"], told["error"]) == ("the watch over the pool main", "ValueError: no idea")
    assert told["raised_at"].endswith("broken")
    assert world.service.tally().errors == ("the watch over the pool main: ValueError: no idea",)


# -- draining


def test_closing_the_gate_tells_what_is_in_flight_and_remembers_what_was_refused_before(world: World) -> None:
    request = world.admit()
    started, refused_before = world.service.close_gate()
    assert (started, refused_before, world.service.gate.accepting) == (100.0, 0, False)
    assert world.events.take("drain_started") == {"in_flight": 1}
    assert world.service.admit("GET", "/", None) is None
    world.end(request)
    world.now += 0.4
    assert world.service.drained(started, refused_before) == Done(100.4)
    told = world.events.take("drain_ended")
    assert told == {"complete": True, "in_flight": 0, "refused": 1, "seconds": 0.4, "at_work": 0}


def test_a_drain_that_leaves_a_request_timed_out(world: World) -> None:
    world.admit()
    started, refused_before = world.service.close_gate()
    world.now += 30
    assert world.service.drained(started, refused_before) == Done(130.0, timed_out=True)
    told = world.events.take("drain_ended")
    assert told == {"complete": False, "in_flight": 1, "refused": 0, "seconds": 30.0, "at_work": 0}


def test_a_drain_that_a_second_signal_broke_off_was_hurried_and_did_not_time_out(world: World) -> None:
    world.admit()
    world.service.signalled("SIGTERM")
    started, refused_before = world.service.close_gate()
    world.service.signalled("SIGTERM")
    assert world.service.drained(started, refused_before) == Done(100.0, hurried=True)


def test_a_drain_that_was_complete_before_the_second_signal_was_not_hurried(world: World) -> None:
    world.service.signalled("SIGTERM")
    started, refused_before = world.service.close_gate()
    world.service.signalled("SIGTERM")
    assert world.service.drained(started, refused_before) == Done(100.0)


def test_only_what_was_refused_in_the_drain_counts_as_refused_by_it(world: World) -> None:
    with world.lock:
        world.service.gate.close()
    world.service.admit("GET", "/", None)
    started, refused_before = world.service.close_gate()
    world.service.admit("GET", "/", None)
    world.service.drained(started, refused_before)
    assert world.events.take("drain_ended")["refused"] == 1
    assert world.service.tally().requests.refused == 2


# -- cancelling


def test_a_request_that_unwinds_without_an_answer_of_its_own_is_told_as_cut(world: World) -> None:
    request = world.admit()
    assert world.service.cancel_all() == ([request], {})
    world.now += 2
    world.end(request, 503)
    assert world.events.take("request_cut") == {
        "request": "abc",
        "route": "GET /work",
        "status": 503,
        "seconds": 2.0,
        "call_site": "",
    }
    assert world.service.give_up() == Done(102.0)


def test_a_request_that_answers_in_spite_of_the_cancellation_is_not_cut(world: World) -> None:
    request = world.admit()
    world.service.cancel_all()
    world.end(request, 200)
    assert "request_cut" not in world.events.names
    assert world.service.tally().requests.finished == 1


def test_a_cancelled_request_is_marked_and_the_pools_stay_open_to_others(world: World) -> None:
    request = world.admit()
    assert world.service.cancel_all() == ([request], {})
    assert request.cancelled
    assert not any(pool.closed for pool in world.pools)


def test_a_request_that_does_not_unwind_is_told_as_cut_once(world: World) -> None:
    request = world.admit()
    world.service.cancel_all()
    world.now += 5
    assert world.service.give_up() == Done(105.0, timed_out=True)
    world.end(request, 503)
    assert world.events.take("request_cut")["seconds"] == 5.0
    assert world.service.tally().requests == RequestCounts(cut=1)


class Client:
    """A client, and what it was answered in the place of whoever serves it."""

    interrupted = False

    def __init__(self, *, answered: bool) -> None:
        self._answered = answered
        self.instead = b""

    def when_sent(self, done: Callable[[], None]) -> None:
        done()

    def answer_instead(self, response: bytes) -> bool:
        self.instead = b"" if self._answered else response
        return not self._answered


@pytest.mark.parametrize("answered", [True, False])
def test_who_waits_for_a_request_that_does_not_unwind_is_answered_unless_an_answer_has_begun(
    world: World, answered: bool
) -> None:
    request = world.admit()
    request.client = client = Client(answered=answered)
    request.status = 200 if answered else None
    world.service.cancel_all()
    world.service.give_up()
    assert client.instead == (b"" if answered else CUT.raw())
    assert world.events.take("request_cut")["status"] == (200 if answered else 504)


def test_what_tells_of_a_decision_is_told_under_its_lock_so_that_the_order_is_true(world: World) -> None:
    leaking, unwinding, stuck = world.admit(), world.admit(), world.admit()
    world.leak(leaking)
    world.service.signalled("SIGTERM")
    started, refused_before = world.service.close_gate()
    world.service.admit("GET", "/", None)
    world.end(leaking)
    world.service.drained(started, refused_before)
    world.service.cancel_all()
    world.end(unwinding, 503)
    world.service.give_up()
    world.end(stuck, 503)
    assert world.events.names == [
        *["request_admitted"] * 3,
        "signal",
        "drain_started",
        "request_refused",
        "leak",
        "request_finished",
        "drain_ended",
        "request_cut",
        "request_finished",
        "request_cut",
        "request_finished",
    ]
    assert not world.events.outside & {
        "request_admitted",
        "request_refused",
        "request_finished",
        "request_cut",
        "signal",
        "drain_started",
        "leak",
    }


# -- the end


def test_a_pool_that_is_closed_in_time_says_how_many_were_idle(world: World) -> None:
    tracker = world.pool.tracker
    tracker.opened, tracker.closed = 10, 10
    done = Done(100.25)
    assert world.service.disposed(done, 100.0, 2) is done
    assert world.events.take("pool_closed") == {"seconds": 0.25, "closed": 8}


@pytest.mark.parametrize(("closed", "timed_out"), [(9, False), (9, True), (10, True)])
def test_a_pool_that_is_not_closed_in_time_or_not_wholly_is_abandoned(closed: int, timed_out: bool) -> None:
    world = World()
    world.pool.tracker.opened, world.pool.tracker.closed = 10, closed
    world.service.disposed(Done(110.0, timed_out=timed_out), 100.0, 0)
    assert world.events.take("pool_abandoned") == {"abandoned": 10 - closed, "seconds": 10.0}
    assert "pool_closed" not in world.events.names


def test_the_tally_holds_the_facts_of_the_whole_life() -> None:
    world = World(LeakPolicy(fail_on_leak=True))
    world.end(world.admit())
    leaking, cut = world.admit("/db-test-leak"), world.admit("/work", "slow")
    world.leak(leaking)
    world.service.signalled("SIGINT")
    world.service.close_gate()
    world.service.admit("GET", "/", None)
    world.end(leaking)
    world.service.cancel_all()
    world.service.give_up()
    world.now += 7.12345
    world.pool.tracker.opened, world.pool.tracker.closed = 10, 9
    assert world.service.tally() == Tally(
        requests=RequestCounts(in_flight_at_signal=2, finished=2, refused=1, cut=1),
        cut_requests=(CutRequest("slow", "GET /work", 7.123, None),),
        leaks={"collected": 0, "unreturned": 1, "overdue": 0, "pinned": 0, "threshold": 0},
        opened=10,
        closed=9,
        outstanding=(),
        reclaimed=0,
        leaked=True,
        fail_on_leak=True,
        signals=1,
        pools=(
            PoolCounts("main", 10, 9, {"collected": 0, "unreturned": 1, "overdue": 0, "pinned": 0, "threshold": 0}),
        ),
    )
    assert cut.given_up


def test_a_service_with_several_pools_adds_them_up() -> None:
    world = World(LeakPolicy(), LeakPolicy(fail_on_leak=True))
    request = world.admit()
    world.leak(request, pool=0)
    world.leak(request, pool=1)
    world.end(request)
    assert world.events.names.count("leak") == 2
    for pool, (opened, closed) in zip(world.pools, [(10, 10), (5, 4)], strict=True):
        pool.tracker.opened, pool.tracker.closed = opened, closed
    tally = world.service.tally()
    assert (tally.opened, tally.closed, tally.leaked, tally.fail_on_leak) == (15, 14, True, True)
    assert tally.leaks == {"collected": 0, "unreturned": 2, "overdue": 0, "pinned": 0, "threshold": 0}
    world.service.disposed(Done(101.0), 100.0, 0)
    assert world.events.take("pool_abandoned")["abandoned"] == 1


def test_the_last_line_sums_the_report_up(world: World) -> None:
    report = ShutdownReport(
        outcome=Outcome.CUT,
        exit_code=3,
        signal="SIGTERM",
        signals=1,
        hurried=False,
        phases=(),
        seconds=35.0512346,
        requests=RequestCounts(3, 120, 12, 1),
        cut_requests=(),
        outstanding=(),
        leaks={},
        connections=ConnectionCounts(),
        errors=(),
    )
    world.service.completed(report)
    assert world.events.take("shutdown_complete") == {
        "outcome": "cut",
        "exit_code": 3,
        "signal": "SIGTERM",
        "seconds": 35.051235,
        "finished": 120,
        "refused": 12,
        "cut": 1,
        "leaked": 0,
        "collected": 0,
        "work_cut": 0,
    }


def test_a_cut_request_is_told_with_the_connection_that_it_held_first(world: World) -> None:
    request = world.admit("/work", "slow")
    token = CURRENT_REQUEST.set(request)
    for statement in ("SELECT pg_sleep(600)", "SELECT 2"):
        stack = StackWalker(()).capture(sys._getframe())
        checkout = world.pool.ledger.check_out(object(), world.now, stack, None, object)
        checkout.statement = statement
        world.now += 1
    CURRENT_REQUEST.reset(token)
    world.service.cancel_all()
    for checkout in list(request.checkouts):
        world.pool.ledger.check_in(checkout.key)  # the cancellation worked: they came back
    world.service.give_up()
    [cut] = world.service.tally().cut_requests
    assert cut.call_site.startswith(f"{__file__}:")
    assert cut.statement == "SELECT pg_sleep(600)"
    assert world.events.take("request_cut")["call_site"] == cut.call_site


# -- the application's own end, and work outside requests


def test_what_the_application_has_to_run_at_its_end_runs_last_first(world: World) -> None:
    def first() -> None: ...

    def second() -> None: ...

    def at_exit() -> None: ...

    world.service.on_shutdown(first)
    world.service.on_shutdown(second)
    world.service.at_exit = lambda: [at_exit]
    assert [function for _, function in world.service.shutdown_functions()] == [second, first, at_exit]
    assert world.service.shutdown_functions()[0][0].endswith("<locals>.second")


def test_an_end_that_takes_too_long_is_told_and_in_the_report(world: World) -> None:
    world.now += 10
    assert world.service.torn_down("shop:end", 100.0) == Done(110.0, timed_out=True)
    assert world.events.take("teardown_abandoned") == {"function": "shop:end", "seconds": 10.0}
    assert world.service.tally().errors == ("shop:end has not ended within the teardown's time",)
    assert world.service.torn_down(None, 100.0) == Done(110.0)


def test_a_named_holder_is_at_work_until_it_returns_its_connection(world: World) -> None:
    with hold_as("nightly"):
        checkout = world.pool.ledger.check_out("key", world.now, (), None, object)
    assert world.service.working() == {world.pool: [checkout]}
    assert not world.service.quiet
    assert world.service.next_look() == math.inf, "its return is an event"
    world.pool.ledger.check_in("key")
    assert world.service.quiet


def test_a_connection_whose_driver_cannot_tell_is_at_work_once_it_has_run_something(world: World) -> None:
    checkout = world.pool.ledger.check_out("key", world.now, (), None, object)
    assert world.service.working() == {}
    checkout.runs = 1
    assert world.service.working() == {world.pool: [checkout]}
    assert world.service.next_look() < 1, "the end of a transaction is none"


def test_what_is_at_work_at_the_deadline_is_told_as_cut_with_its_holder(world: World) -> None:
    started, refused = world.service.close_gate()
    with hold_as("nightly"):
        world.pool.ledger.check_out("key", world.now, (), None, object)
    world.now += 30
    assert world.service.drained(started, refused) == Done(130.0, timed_out=True)
    assert world.events.take("drain_ended")["at_work"] == 1
    requests, work = world.service.cancel_all()
    assert (requests, [len(checkouts) for checkouts in work.values()]) == ([], [1])
    assert not world.service.unwound(work)
    world.service.give_up()
    assert world.events.take("work_cut")["holding"]["holder"] == "nightly"
    (held,) = world.service.tally().cut_work
    assert (held.holder, held.pool) == ("nightly", "main")


def test_a_service_without_a_pool_of_its_own_says_so(world: World) -> None:
    bare = Lifecycle[Pool, object]([], ShutdownPolicy(), events=world.events, lock=world.lock, clock=world.clock)
    assert bare.has_no_pool
    with pytest.raises(LookupError, match="no pool of its own"):
        _ = bare.pool
