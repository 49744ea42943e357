"""The parts of the documentation that are made from the code: `python -m tests.docs.pages` writes them anew."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pooldrain
from pooldrain.admin.exposition import metrics_table
from pooldrain.runtime.options.table import options_table
from pooldrain.transcript import events_table

DOCS = Path(__file__).parents[2] / "docs"

# What people may rely on, by the module that they import it from.
PUBLIC: dict[str, tuple[str, ...]] = {
    "pooldrain": tuple(pooldrain.__all__),
    "pooldrain.sqla.tracking": ("Tracked",),
    "pooldrain.admin.exposition": ("PoolCollector",),
    "pooldrain.ledger": ("Holding",),
    "pooldrain.runtime.output.logging": ("ConsoleFormatter", "JsonFormatter"),
    "pooldrain_sync.runner": ("Runner",),
    "pooldrain_async.runner": ("Runner",),
}
# Of a runner only what an application is meant to use.
RUNNER = ("pool", "phase", "on_open", "on_shutdown", "add_pool", "answer_always", "snapshot")


def report_table() -> str:
    """The fields of a process's report, from its schema."""
    schema = json.loads((files(pooldrain) / "report.schema.json").read_text("utf-8"))
    lines = ["| field | kind | meaning |", "|---|---|---|"]
    for name, told in schema["$defs"]["process"]["properties"].items():
        lines.append(f"| `{name}` | {_kind(told)} | {told.get('description', '')} |")
    lines += ["", "An entry of `outstanding` and `cut_work`:", "", "| field | kind | meaning |", "|---|---|---|"]
    for name, told in schema["$defs"]["holding"]["properties"].items():
        lines.append(f"| `{name}` | {_kind(told)} | {told.get('description', '')} |")
    return "\n".join(lines) + "\n"


def _kind(told: dict[str, Any]) -> str:
    if "enum" in told:
        return ", ".join(f"`{each}`" for each in told["enum"])
    kind = told.get("type", "object")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def api_page() -> str:
    """The Python API, from signatures and docstrings."""
    parts = [
        "# Python API",
        "",
        "What an application may rely on; everything else may change between two versions.",
        "",
    ]
    for module, names in PUBLIC.items():
        parts += [f"## `{module}`", ""]
        for name in names:
            parts += _described(name, getattr(importlib.import_module(module), name))
    return "\n".join(parts).rstrip() + "\n"


def _described(name: str, thing: Any) -> Iterator[str]:
    if inspect.isclass(thing):
        yield from (f"### `{name}{_signature(thing) if dataclasses.is_dataclass(thing) else ''}`", "", _text(thing), "")
        for member, value in _members(thing):
            kind = "" if isinstance(value, property) else _signature(value)
            yield from (f"- `{member}{kind}`: {_text(value).partition(chr(10) * 2)[0]}",)
        yield ""
    else:
        yield from (f"### `{name}{_signature(thing)}`", "", _text(thing), "")


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    if issubclass(kind, BaseException):
        return
    wanted = RUNNER if kind.__name__ == "Runner" else [name for name in vars(kind) if not name.startswith("_")]
    for name in wanted:
        value = inspect.getattr_static(kind, name)
        told = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if isinstance(told, property) or inspect.isfunction(told):
            yield name, told


def _signature(thing: Callable[..., Any]) -> str:
    told = str(inspect.signature(thing)).replace("pooldrain.policy.", "").replace("'", "")
    told = re.sub(r"\(self(, )?", "(", told)
    return re.sub(r" -> None$", "", told)


def _text(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def replaced(page: str, table: str, head: str) -> str:
    """`page` with its table that begins with `head`, and ends with an empty line, in its new form."""
    begin = page.index(head)
    end = page.index("\n\n", begin) + 1 if "\n\n" in page[begin:] else len(page)
    return page[:begin] + table + page[end:]


def main() -> None:
    """Write all of them."""
    for name, table in (
        ("reference/options.md", options_table()),
        ("reference/metrics.md", metrics_table()),
        ("reference/events.md", events_table()),
    ):
        path = DOCS / name
        path.write_text(replaced(path.read_text("utf-8"), table, table.partition("\n")[0]), "utf-8")
    report = DOCS / "reference" / "report.md"
    text = report.read_text("utf-8")
    begin = text.index("| field |") if "| field |" in text else text.index("FIELDS")
    end = text.index("\nHow to read one:")
    report.write_text(text[:begin] + report_table() + text[end:], "utf-8")
    (DOCS / "reference" / "api.md").write_text(api_page(), "utf-8")


if __name__ == "__main__":
    main()
