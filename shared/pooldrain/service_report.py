"""The report file's one shape: the whole service at the top, each of its processes under `workers`.

`report.schema.json`, beside this module, describes it (JSON Schema, draft 2020-12).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pooldrain.exit_codes import worst_exit_code

Report = dict[str, Any]  # of one process: `ShutdownReport.as_dict()`


def service_report(workers: Sequence[Report], exit_code: int, refused_by_master: int = 0) -> Report:
    """One report of all processes that served, at least one: counts are summed, lists joined, the worst outcome told.

    `exit_code`: the service's own, which is worse than all of theirs if one was killed. The duration of each phase, and
    of the whole, is the longest of any process.
    """
    worst = worst_exit_code(int(each["exit_code"]) for each in workers)
    first = workers[0]
    requests = _summed([each["requests"] for each in workers])
    requests["refused"] += refused_by_master
    requests["seen"] += refused_by_master
    return {
        "outcome": next(each["outcome"] for each in workers if each["exit_code"] == worst),
        "exit_code": exit_code,
        "signal": first["signal"],
        "signals": max(each["signals"] for each in workers),
        "hurried": any(each["hurried"] for each in workers),
        "seconds": max(each["seconds"] for each in workers),
        "phases": _longest([each["phases"] for each in workers]),
        "requests": requests,
        "cut_requests": _joined(workers, "cut_requests"),
        "cut_work": _joined(workers, "cut_work"),
        "outstanding": _joined(workers, "outstanding"),
        "leaks": _summed([each["leaks"] for each in workers]),
        "connections": _summed([each["connections"] for each in workers]),
        "pools": _by_name(_joined(workers, "pools")),
        "errors": _joined(workers, "errors"),
        "refused_by_master": refused_by_master,
        "workers": list(workers),
    }


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(each[name] for each in counts) for name in counts[0]}


def _joined(workers: Sequence[Report], name: str) -> list[Any]:
    return [entry for each in workers for entry in each[name]]


def _longest(phases: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    longest: dict[str, float] = {}
    for each in phases:
        for entry in each:
            longest[entry["phase"]] = max(entry["seconds"], longest.get(entry["phase"], 0.0))
    return [{"phase": phase, "seconds": seconds} for phase, seconds in longest.items()]


def _by_name(pools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each pool, whatever the number of processes that have it."""
    rows: dict[str, dict[str, Any]] = {}
    for each in pools:
        row = rows.setdefault(each["pool"], {"pool": each["pool"], "opened": 0, "closed": 0, "leaks": {}})
        row["opened"] += each["opened"]
        row["closed"] += each["closed"]
        row["leaks"] = {rule: number + row["leaks"].get(rule, 0) for rule, number in each["leaks"].items()}
    return list(rows.values())
