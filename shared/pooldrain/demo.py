"""The demo service, decided: routes, SQL, validation and payloads, so that both apps answer the same bytes.

The routes and the Chinese texts are the tutorial's; its printed outputs are requirements.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pooldrain.answers import Answer, answer, to_json
from pooldrain.problems import problem
from pooldrain.status import PoolStatus

GREETING = "数据库连接池优雅关闭示例"
LEAK_WARNING = "这个端点会导致连接泄漏！"

_READ = ("GET", "HEAD")
# Path, name of the handler in both apps, methods; any other method is 405 with this list as Allow.
ROUTES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("/", "root", _READ),
    ("/db-test", "db_test", _READ),
    ("/db-test-leak", "db_test_leak", _READ),
    ("/pool-status", "pool_status", _READ),
    ("/work", "work", _READ),
    ("/orders", "create_order", ("POST",)),
    ("/orders/count", "count_orders", _READ),
    ("/orders/{order_id}", "get_order", _READ),
    ("/livez", "livez", _READ),
    ("/readyz", "readyz", _READ),
)

# Answered in every phase, and never counted, as probes are: it has to work while the service drains.
STATUS_PATH = "/pool-status"

MAX_WORK_MS = 3_600_000
MAX_BODY = 16_384  # bytes
MAX_TEXT = 64  # characters of an id or an item
MAX_QUANTITY = 1_000_000
_ORDER_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_TEXT}}}")  # goes into a URL as it is

SELECT_ONE = "SELECT 1 AS test"
CREATE_ORDERS = """
CREATE TABLE IF NOT EXISTS orders (
    id varchar(64) PRIMARY KEY,
    item varchar(64) NOT NULL,
    quantity integer NOT NULL
)"""
# Workers start at the same time, and PostgreSQL's IF NOT EXISTS does not make them wait for each other.
_PREPARE = {
    "postgresql": ("SELECT pg_advisory_xact_lock(hashtext('pooldrain demo'))", CREATE_ORDERS),
    "sqlite": (CREATE_ORDERS,),
}
# Idempotent on the client's id: a retry after a lost answer must not order twice.
INSERT_ORDER = "INSERT INTO orders (id, item, quantity) VALUES (:id, :item, :quantity) ON CONFLICT (id) DO NOTHING"
SELECT_ORDER = "SELECT id, item, quantity FROM orders WHERE id = :id"
COUNT_ORDERS = "SELECT count(*) FROM orders"
_WORK = {
    "postgresql": "SELECT pg_sleep(:seconds)",
    # SQLite has no sleep; this counts until the function below says that the time is over, and can be interrupted.
    "sqlite": (
        "WITH RECURSIVE work(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM work WHERE pooldrain_wait(:seconds, i)) "
        "SELECT max(i) FROM work"
    ),
}


def prepare_statements(dialect: str) -> tuple[str, ...]:
    """What makes the demo's table, in one transaction."""
    return _PREPARE[dialect]


def allowed_methods(path: str) -> tuple[str, ...]:
    """The methods of the route that `path` belongs to."""
    return next((methods for known, _, methods in ROUTES if known == path), _READ)  # the one with a parameter is read


def work_statement(dialect: str) -> str:
    """A query that takes `:seconds`."""
    return _WORK[dialect]


@dataclass(frozen=True, slots=True)
class Order:
    """A row of the demo's table."""

    id: str
    item: str
    quantity: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, and the parameters of INSERT_ORDER."""
        return {"id": self.id, "item": self.item, "quantity": self.quantity}


def root(status: PoolStatus) -> Answer:
    """`/`."""
    return answer({"message": GREETING, "pool_status": status.as_dict()})


def db_test(result: Any, status: PoolStatus) -> Answer:
    """`/db-test`."""
    return answer({"status": "success", "result": result, "pool_status": status.as_dict()})


def db_test_leak(result: Any, status: PoolStatus) -> Answer:
    """`/db-test-leak`."""
    return answer({"status": "success", "result": result, "pool_status": status.as_dict(), "warning": LEAK_WARNING})


def worked(ms: int) -> Answer:
    """`/work`."""
    return answer({"status": "success", "ms": ms})


def order_stored(wanted: Order, stored: Order, *, created: bool) -> Answer:
    """201 after the commit; 200 for a retry of the same order; 409 if the id is taken by another one."""
    if stored != wanted:
        return problem(409, f"order {wanted.id} exists with another item or quantity")
    where = (("location", f"/orders/{stored.id}"),)
    return Answer(201 if created else 200, to_json(stored.as_dict()), extra_headers=where)


def order_found(order: Order) -> Answer:
    """200."""
    return answer(order.as_dict())


def order_missing(order_id: str) -> Answer:
    """404."""
    return problem(404, f"there is no order {order_id}")


def orders_counted(count: int) -> Answer:
    """`/orders/count`."""
    return answer({"count": count})


def parse_ms(text: str | None) -> int | Answer:
    """`?ms=N` of `/work`, or the problem with it."""
    if text is None:
        return problem(400, "the query parameter ms is missing: say /work?ms=N with N in milliseconds")
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) > MAX_WORK_MS:
        return problem(400, f"the query parameter ms must be a whole number from 0 to {MAX_WORK_MS}")
    return int(text)


def parse_flag(name: str, text: str | None) -> bool | Answer:
    """A query parameter that is 0 or 1 (absent: 0), or the problem with it."""
    if text in (None, "0", "1"):
        return text == "1"
    return problem(400, f"the query parameter {name} must be 0 or 1")


def parse_order(body: bytes) -> Order | Answer:
    """The body of `POST /orders`, or the problem with it."""
    if len(body) > MAX_BODY:
        return problem(413, f"the body must not be larger than {MAX_BODY} bytes", close=True)
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return problem(400, "the body is not valid JSON")
    if not isinstance(data, dict):
        return problem(400, 'the body must be a JSON object: {"id": "...", "item": "...", "quantity": 1}')
    if unknown := sorted(set(data) - {"id", "item", "quantity"}):
        return problem(400, f"the order has an unknown field {unknown[0]!r}")
    order_id, item = data.get("id"), data.get("item")
    if not isinstance(order_id, str) or not _ORDER_ID.fullmatch(order_id):
        return problem(400, f"the order's id must be 1 to {MAX_TEXT} letters, digits, dots, dashes or underscores")
    if not isinstance(item, str) or not 1 <= len(item) <= MAX_TEXT or not item.isprintable():
        return problem(400, f"the order's item must be a text of 1 to {MAX_TEXT} printable characters")
    quantity = data.get("quantity", 1)
    if not isinstance(quantity, int) or isinstance(quantity, bool) or not 1 <= quantity <= MAX_QUANTITY:
        return problem(400, f"the order's quantity must be a whole number from 1 to {MAX_QUANTITY}")
    return Order(order_id, item, quantity)
