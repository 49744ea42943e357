"""What it costs to look inside: measured on every server, in turn, as ratios of one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pooldrain_compare.inside.command import table
from pooldrain_compare.inside.looking import CASES, KINDS, SCRAPED, UNREAD, Looked, look

SERVERS = ("pooldrain-gunicorn", "pooldrain-uvicorn")


def test_each_server_answers_in_each_case_and_of_each_kind(database_url: str, tmp_path: Path) -> None:
    found = look(SERVERS, database_url, tmp_path, rounds=1, seconds=0.1, say=lambda _: None)
    assert [(each.server, each.case) for each in found] == [(server, case) for server in SERVERS for case in CASES]
    for each in found:
        assert list(each.samples) == list(KINDS)
        assert all(sample > 0 for samples in each.samples.values() for sample in samples)
    assert table(found).row_count == len(found)


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    looked = Looked(
        "a server", "nothing", {"without": [100.0, 50.0, 10.0], UNREAD: [100.0, 50.0, 9.0], SCRAPED: [50.0, 50.0, 9.0]}
    )
    assert looked.ratio(UNREAD) == pytest.approx(1.0)
    assert looked.ratio(SCRAPED) == pytest.approx(0.9)
