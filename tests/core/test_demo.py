"""The demo service's decisions: the tutorial's bytes, and a clear answer to any bad input."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pooldrain import demo
from pooldrain.answers import Answer
from pooldrain.demo import MAX_BODY, MAX_QUANTITY, MAX_TEXT, MAX_WORK_MS, Order, parse_flag, parse_ms, parse_order
from pooldrain.probes import Probes
from pooldrain.status import PoolStatus

IDLE = PoolStatus(10, 0, 0, 10)
ORDER = Order("a-1", "茶", 2)


def detail(made: object) -> str:
    """The detail of a problem, after a look at its form."""
    assert isinstance(made, Answer)
    assert 400 <= made.status < 500
    document = json.loads(made.body)
    assert list(document) == ["type", "title", "status", "detail"]
    assert (document["type"], document["status"]) == ("about:blank", made.status)
    assert made.content_type == "application/problem+json"
    text: str = document["detail"]
    return text


# -- the tutorial's answers


def test_the_root_answers_the_tutorials_greeting() -> None:
    assert (
        demo.root(IDLE).body.decode()
        == """\
{
  "message": "数据库连接池优雅关闭示例",
  "pool_status": {
    "pool_size": 10,
    "checkedout": 0,
    "overflow": 0,
    "idle": 10
  }
}
"""
    )


def test_the_database_test_answers_the_tutorials_bytes() -> None:
    assert (
        demo.db_test(1, IDLE).body.decode()
        == """\
{
  "status": "success",
  "result": 1,
  "pool_status": {
    "pool_size": 10,
    "checkedout": 0,
    "overflow": 0,
    "idle": 10
  }
}
"""
    )


def test_the_leak_answers_the_tutorials_bytes() -> None:
    assert (
        demo.db_test_leak(1, PoolStatus(10, 5, 0, 5)).body.decode()
        == """\
{
  "status": "success",
  "result": 1,
  "pool_status": {
    "pool_size": 10,
    "checkedout": 5,
    "overflow": 0,
    "idle": 5
  },
  "warning": "这个端点会导致连接泄漏！"
}
"""
    )


def test_work_answers_how_long_it_was_asked_to_take() -> None:
    assert demo.worked(250).body == b'{\n  "status": "success",\n  "ms": 250\n}\n'


# -- orders


def test_a_new_order_is_created_and_says_where_it_is() -> None:
    made = demo.order_stored(ORDER, ORDER, created=True)
    assert (made.status_line, dict(made.headers)["location"]) == ("201 Created", "/orders/a-1")
    assert made.body.decode() == '{\n  "id": "a-1",\n  "item": "茶",\n  "quantity": 2\n}\n'


def test_a_retry_of_the_same_order_gets_the_same_body() -> None:
    created, again = (demo.order_stored(ORDER, ORDER, created=created) for created in (True, False))
    assert again.status == 200
    assert (again.body, again.headers) == (created.body, created.headers)


def test_an_id_that_another_order_has_is_a_conflict() -> None:
    made = demo.order_stored(ORDER, Order("a-1", "茶", 3), created=False)
    assert made.status == 409
    assert detail(made) == "order a-1 exists with another item or quantity"


def test_orders_are_found_missed_and_counted() -> None:
    assert demo.order_found(ORDER).body == demo.order_stored(ORDER, ORDER, created=True).body
    assert detail(demo.order_missing("a-2")) == "there is no order a-2"
    assert demo.orders_counted(7).body == b'{\n  "count": 7\n}\n'


def test_an_order_is_its_own_parameters() -> None:
    for name in ORDER.as_dict():
        assert f":{name}" in demo.INSERT_ORDER


# -- input: POST /orders


@pytest.mark.parametrize(
    ("body", "order"),
    [
        (b'{"id": "a-1", "item": "tea", "quantity": 2}', Order("a-1", "tea", 2)),
        ('{"item": "茶", "id": "A._-9"}'.encode(), Order("A._-9", "茶", 1)),
        (json.dumps({"id": "i" * MAX_TEXT, "item": "x" * MAX_TEXT, "quantity": MAX_QUANTITY}).encode(), None),
    ],
)
def test_a_good_order_is_taken(body: bytes, order: Order | None) -> None:
    parsed = parse_order(body)
    assert isinstance(parsed, Order)
    assert order is None or parsed == order


GOOD: dict[str, Any] = {"id": "a", "item": "tea", "quantity": 1}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\xfd", "not valid JSON"),
        (b"[" * 10_000, "not valid JSON"),
        (b"1" * 10_000, "not valid JSON"),  # more digits than Python turns into a number
        (b'{"id": "\xe9"}', "not valid JSON"),
        (b"null", "must be a JSON object"),
        (b'["id", "item"]', "must be a JSON object"),
        (b"{}", "id must be"),
        (b'{"\\ud800": 1}', r"unknown field '\\ud800'"),
    ],
)
def test_a_body_that_is_no_order_is_refused(body: bytes, reason: str) -> None:
    made = parse_order(body)
    assert isinstance(made, Answer)
    assert made.status == 400
    assert reason.replace("\\\\", "\\") in detail(made)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("id", value) for value in ["", "i" * (MAX_TEXT + 1), "a/b", "a b", "é", "a\n", "../x", 7, None, ["a"]]),
        *(("item", value) for value in ["", "x" * (MAX_TEXT + 1), "a\nb", "\x00", "\ud800", 7, None, {}]),
        *(("quantity", value) for value in [0, -1, MAX_QUANTITY + 1, 1.0, True, "1", None, float("nan"), 10**300]),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_name(field: str, value: Any) -> None:
    assert f"the order's {field} must be" in detail(parse_order(json.dumps({**GOOD, field: value}).encode()))


def test_a_field_nobody_knows_is_refused_by_name() -> None:
    assert detail(parse_order(json.dumps({**GOOD, "price": 1}).encode())) == "the order has an unknown field 'price'"


def test_a_body_too_large_is_refused_before_it_is_read() -> None:
    made = parse_order(b"{" + b" " * MAX_BODY)
    assert isinstance(made, Answer)
    assert made.status == 413
    assert str(MAX_BODY) in detail(made)
    padded = json.dumps(GOOD).encode().ljust(MAX_BODY)
    assert isinstance(parse_order(padded), Order), "the limit itself is allowed"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.one_of(
        st.binary(),
        st.text().map(str.encode),
        anything.map(lambda value: json.dumps(value).encode()),
        st.fixed_dictionaries({}, optional={"id": anything, "item": anything, "quantity": anything}).map(
            lambda value: json.dumps(value).encode()
        ),
    )
)
def test_any_body_is_an_order_within_the_limits_or_a_problem(body: bytes) -> None:
    parsed = parse_order(body)
    if isinstance(parsed, Order):
        assert 1 <= len(parsed.id) <= MAX_TEXT
        assert 1 <= len(parsed.item) <= MAX_TEXT
        assert 1 <= parsed.quantity <= MAX_QUANTITY
        assert parse_order(json.dumps(parsed.as_dict()).encode()) == parsed
    else:
        detail(parsed)


# -- input: query parameters


@pytest.mark.parametrize(("text", "ms"), [("0", 0), ("250", 250), ("007", 7), (str(MAX_WORK_MS), MAX_WORK_MS)])
def test_a_whole_number_of_milliseconds_is_taken(text: str, ms: int) -> None:
    assert parse_ms(text) == ms


@pytest.mark.parametrize(
    "text", ["", " ", "-1", "+1", "1.5", "1e3", "1_0", " 1", "0x1", "٣", "²", "nan", str(MAX_WORK_MS + 1), "9" * 5000]
)
def test_any_other_ms_is_refused_with_its_limits(text: str) -> None:
    assert detail(parse_ms(text)) == f"the query parameter ms must be a whole number from 0 to {MAX_WORK_MS}"


def test_a_missing_ms_is_asked_for() -> None:
    assert "ms is missing" in detail(parse_ms(None))


@pytest.mark.parametrize(("text", "flag"), [(None, False), ("0", False), ("1", True)])
def test_a_flag_is_one_or_zero_or_absent(text: str | None, flag: bool) -> None:
    assert parse_flag("detail", text) is flag


@pytest.mark.parametrize("text", ["", "2", "true", "yes", "01", " 1", "１"])
def test_any_other_flag_is_refused_by_name(text: str) -> None:
    assert detail(parse_flag("collect", text)) == "the query parameter collect must be 0 or 1"


@given(st.text(st.characters()))
@example("\ud800")
def test_any_query_is_a_value_or_a_problem(text: str) -> None:
    ms, flag = parse_ms(text), parse_flag("detail", text)
    assert detail(ms) if isinstance(ms, Answer) else 0 <= ms <= MAX_WORK_MS
    assert detail(flag) if isinstance(flag, Answer) else flag is (text == "1")


# -- routes and statements


def test_every_route_has_one_handler_and_one_path() -> None:
    paths, names, _ = zip(*demo.ROUTES, strict=True)
    assert len(set(paths)) == len(paths)
    assert len(set(names)) == len(names)
    assert set(paths) >= {*Probes().uncounted, demo.STATUS_PATH}


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/", ("GET", "HEAD")),
        ("/orders", ("POST",)),
        ("/orders/count", ("GET", "HEAD")),
        ("/orders/7", ("GET", "HEAD")),
    ],
)
def test_a_path_is_allowed_the_methods_of_its_route(path: str, methods: tuple[str, ...]) -> None:
    assert demo.allowed_methods(path) == methods


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])
def test_each_database_has_statements_of_its_own(dialect: str) -> None:
    assert demo.CREATE_ORDERS in demo.prepare_statements(dialect)
    assert ":seconds" in demo.work_statement(dialect)
