"""The events: one vocabulary for the log and the transcript, each of them plain data and, where shown, one line."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from pooldrain import transcript
from pooldrain.ledger import Holding
from pooldrain.status import PoolStatus
from pooldrain.transcript import (
    DEBUG,
    ERROR,
    INFO,
    WARNING,
    DrainEnded,
    Event,
    LeakReturned,
    Listening,
    NotReturned,
    RequestCut,
    SignalReceived,
    event_kinds,
    events_table,
)

EVENTS = event_kinds()
HOLDING = Holding(
    holder="GET /work",
    request_id="abc",
    age=1.5,
    call_site="app.py:7 in work",
    callers=("app.py:9 in view",),
    statement="SELECT 1",
    in_transaction=True,
    rule="unreturned",
)
SAMPLES: dict[Any, Any] = {
    str: "text",
    int: 3,
    float: 0.25,
    bool: True,
    tuple[str, ...]: ("one", "another"),
    str | None: None,
    int | None: None,
    Holding: HOLDING,
    PoolStatus: PoolStatus(10, 5, 0, 5),
}


def sample(kind: type[Event]) -> Event:
    hints = get_type_hints(kind)
    return kind(**{item.name: SAMPLES[hints[item.name]] for item in fields(kind)})


every_event = pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)


# -- what holds for each of them


def test_every_event_has_a_name_of_its_own() -> None:
    names = [kind.name for kind in EVENTS]
    assert len(set(names)) == len(names) > 20
    assert Event.name not in names
    assert all(name.replace("_", "").isalpha() and name == name.lower() for name in names)


@every_event
def test_every_event_says_what_it_is_for(kind: type[Event]) -> None:
    documentation = kind.__doc__ or ""
    assert documentation.endswith(".")
    assert not documentation.startswith(f"{kind.__name__}("), "that was written by dataclass"


@every_event
def test_every_event_is_plain_data_under_its_name(kind: type[Event]) -> None:
    event = sample(kind)
    written = json.loads(json.dumps(event.as_dict()))
    assert written.pop("event") == kind.name
    assert set(written) == {item.name for item in fields(kind)}
    assert not {"event", "t", "time", "message"} & set(written), "that belongs to the log's or the transcript's line"


@every_event
def test_every_message_is_one_line_at_a_level_of_the_log(kind: type[Event]) -> None:
    assert kind.level in (DEBUG, INFO, WARNING, ERROR)
    message = sample(kind).message()
    if message is not None:
        assert len(message.splitlines()) == 1
        assert message == message.strip()


@every_event
def test_no_event_can_be_changed(kind: type[Event]) -> None:
    event: Any = sample(kind)
    with pytest.raises((FrozenInstanceError, TypeError)):
        event.name = "another"


def test_an_event_carries_holdings_and_numbers_as_plain_data() -> None:
    assert sample(transcript.Outstanding).as_dict() == {
        "event": "outstanding",
        "number": 3,
        "holding": HOLDING.as_dict(),
    }
    assert sample(transcript.PoolClosing).as_dict() == {
        "event": "pool_closing",
        "pool_status": {"pool_size": 10, "checkedout": 5, "overflow": 0, "idle": 5},
        "pool": "text",
    }


def test_single_requests_checkouts_and_connections_and_what_the_transcript_lost_stay_out_of_the_log() -> None:
    silent = {kind.name for kind in EVENTS if sample(kind).message() is None}
    assert silent == {
        "request_admitted",
        "events_lost",
        "request_refused",
        "request_finished",
        "connection_opened",
        "connection_closed",
        "connection_reclaimed",
        "checkout",
        "checkin",
    }


# -- what people read


def test_a_service_says_where_it_listens() -> None:
    assert Listening("127.0.0.1", 8000, "waitress", 123).message() == (
        "listening on http://127.0.0.1:8000 (waitress, pid 123)"
    )
    assert Listening("::1", 80, "uvicorn", 1).message() == "listening on http://[::1]:80 (uvicorn, pid 1)"


def test_a_first_signal_shuts_down_and_a_second_hurries() -> None:
    assert SignalReceived("SIGTERM", 1).message() == "SIGTERM received: shutting down"
    assert SignalReceived("SIGINT", 2).message() == "SIGINT received: hurrying: no more waiting for requests"


def test_a_drain_says_how_it_ended() -> None:
    assert DrainEnded(True, 0, 12, 0.4121).message() == "drain: complete after 0.412 s, 12 refused"
    assert DrainEnded(False, 2, 12, 30.0).message() == "drain: given up after 30.000 s, 2 still in flight"


def test_one_connection_is_not_several() -> None:
    assert NotReturned(1).message() == "pool: 1 connection was not returned, possible leak:"
    assert NotReturned(5).message() == "pool: 5 connections were not returned, possible leak:"


def test_a_cut_request_says_what_its_client_got() -> None:
    assert RequestCut("abc", "GET /work", None, 35.0).message() == (
        "cancel: GET /work, request abc, cut after 35.000 s, no answer"
    )
    assert "answered 503" in (RequestCut("abc", "GET /work", 503, 35.0).message())


def test_a_leak_that_came_back_says_after_how_long() -> None:
    assert "returned after 1.500 s" in LeakReturned("overdue", HOLDING).message()


# -- the table for people


def test_the_documentation_has_every_event_with_its_fields() -> None:
    document = Path(__file__).parents[2] / "docs" / "reference" / "events.md"
    assert document.read_text("utf-8").endswith(f"## Events\n\n{events_table()}")


def test_every_event_has_a_name_of_its_own_and_says_what_has_happened() -> None:
    names = [kind.name for kind in event_kinds()]
    assert len(set(names)) == len(names) > 30
    assert all(
        kind.__doc__ and not kind.__doc__.startswith(kind.__name__) for kind in event_kinds()
    )  # a dataclass's own
