"""The live page in a terminal: `pooldrain top URL`."""

from __future__ import annotations

import base64
import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pooldrain.errors import ConfigurationError
from pooldrain.snapshot import CheckoutStatus, ServiceStatus, service_phase

# Seconds from one look to the next, and for which an answer is waited for.
PAUSE, PATIENCE = 0.5, 2.0

# Rows of a table: a terminal does not scroll.
SHOWN = 20

# Where the token is looked for, besides the URL.
TOKEN = "POOLDRAIN_ADMIN_TOKEN"  # noqa: S105 - a name, not the token


class Source:
    """One service's `/status`. `url`: of its admin listener, with the token as the password if it wants one.

    Raises ConfigurationError for a URL that is none.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname or url.startswith("unix:"):
            raise ConfigurationError("top needs the admin listener's URL, as http://127.0.0.1:8001")
        self.shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._request = urllib.request.Request(f"{self.shown}/status")  # noqa: S310 - http or https, see above
        if token := parts.password or os.environ.get(TOKEN):
            basic = base64.b64encode(f":{urllib.parse.unquote(token)}".encode()).decode()
            self._request.add_header("Authorization", f"Basic {basic}")

    def read(self) -> ServiceStatus:
        """What it says now. Raises OSError, ValueError."""
        with urllib.request.urlopen(self._request, timeout=PATIENCE) as answer:  # noqa: S310 - as above
            status: ServiceStatus = json.load(answer)
            return status


def top(url: str, *, once: bool, ended: threading.Event) -> int:
    """Show a service until `ended` is set, or once; the exit code: 1 if it could not be seen, the last time."""
    source, console = Source(url), Console()
    seen, told = look(source)
    if once or not console.is_terminal:
        console.print(told)
        return 0 if seen else 1
    with Live(told, console=console, screen=True, auto_refresh=False) as live:
        while not ended.wait(PAUSE):
            seen, told = look(source)
            live.update(told, refresh=True)
    return 0 if seen else 1


def look(source: Source) -> tuple[bool, RenderableType]:
    """Whether a service could be seen, and what is to be shown."""
    try:
        return True, view(source.read())
    except urllib.error.HTTPError as error:
        hint = f"; give its token, as http://:TOKEN@{source.shown.partition('://')[2]} or in {TOKEN}"
        return False, Text(f"{source.shown} answers {error.code}{hint if error.code == 401 else ''}", style="red")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return False, Text(f"{source.shown} does not answer: {reason}", style="red")


def view(status: ServiceStatus) -> Group:
    """A status, as it is shown."""
    workers, totals = status["workers"], status["totals"]
    phase = service_phase([worker["phase"] for worker in workers]).lower()
    head = (
        f"{status['service']}  {phase}  {len(workers)} workers  "
        f"{sum(worker['in_flight'] + worker['waiting'] for worker in workers)} in flight  "
        f"{totals['finished']} finished  {totals['refused']} refused  {totals['cut']} cut"
    )
    requests = Table("for", "request", "state", title="In flight", title_justify="left", box=None, header_style="dim")
    flying = sorted((each for worker in workers for each in worker["requests"]), key=lambda each: -each["age"])
    for each in flying[:SHOWN]:
        state = "working" if each["status"] is None else f"answering {each['status']}"
        told = f"cancelled, {state}" if each["cancelled"] else state
        requests.add_row(f"{each['age']:.1f} s", Text(f"{each['route']} ({each['request_id']})"), told)
    return Group(Text(head, style="bold"), *_pools(status), _checkouts(status), requests)


def _pools(status: ServiceStatus) -> Iterator[RenderableType]:
    rows: dict[str, tuple[int, int, int, int]] = {}
    for engine in (engine for worker in status["workers"] for engine in worker["engines"]):
        used, idle, waiting, most = rows.get(engine["name"], (0, 0, 0, 0))
        more = engine["max"] if engine["max"] is not None else engine["used"] + engine["idle"]
        rows[engine["name"]] = (
            used + engine["used"],
            idle + engine["idle"],
            waiting + engine["waiting"],
            most + more,
        )
    for name, (used, idle, waiting, most) in rows.items():
        line = Table.grid(padding=(0, 1))
        told = Text(f"{used} used, {idle} idle of {most}, {waiting} waiting", style="yellow" if waiting else "")
        line.add_row(Text(name), ProgressBar(max(1, most), used, width=40), told)
        yield line


def _checkouts(status: ServiceStatus) -> Table:
    table = Table(
        *("held for", "holder", "checked out at", "last statement"),
        title="Checked out",
        title_justify="left",
        box=None,
        header_style="dim",
    )
    held: list[CheckoutStatus] = [
        each for worker in status["workers"] for engine in worker["engines"] for each in engine["checkouts"]
    ]
    for each in sorted(held, key=lambda each: -each["age"])[:SHOWN]:
        leaked = f", leaked ({each['rule']})" if each["rule"] else ""
        inside = ", in a transaction" if each["in_transaction"] else ""
        holder = Text(f"{each['holder']}{leaked}{inside}", style="red" if each["rule"] else "")
        table.add_row(f"{each['age']:.1f} s", holder, Text(each["call_site"]), Text(each["statement"] or ""))
    return table
