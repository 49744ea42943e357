"""The connection budget: what a fleet may open at its worst moment, against the tightest limit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooldrain.budget import Fleet, Line, Room, shortage, verdict, what_fits

ROOM = Room(
    version="18.6",
    user="shop",
    superuser=False,
    database="shop",
    max_connections=100,
    reserved=5,
    role_limit=None,
    database_limit=None,
    others={"psql as admin": 5},
)


def test_one_instance_needs_its_pools_and_while_it_is_restarted_two() -> None:
    assert Fleet(pool_size=3, max_overflow=2).needs() == {
        "kept open (pool-size)": 3,
        "at most (with max-overflow)": 5,
        "at most, while 1 more instance starts": 10,
    }


def test_workers_that_are_replaced_count_while_both_are_there() -> None:
    needs = Fleet(instances=2, workers=3, pool_size=1, max_overflow=1, surge=0, recycles=True).needs()
    assert needs["at most (with max-overflow)"] == 12
    assert needs["at most, while a worker of each instance is replaced, too"] == 16


def test_what_others_use_and_what_is_reserved_is_not_ours() -> None:
    assert ROOM.tightest == ("max_connections 100", 90)


@pytest.mark.parametrize(
    ("limits", "left"),
    [({"role_limit": 30, "others_of_role": 4}, 26), ({"database_limit": 20, "others_of_database": 1}, 19)],
)
def test_the_tightest_limit_counts(limits: dict[str, int], left: int) -> None:
    room = replace(ROOM, **limits)  # type: ignore[arg-type]  # the fields' own types
    assert room.tightest[1] == left
    assert replace(room, superuser=True).tightest[1] == 90, "which no superuser is held to"


def test_each_occasion_is_told_with_what_is_too_many() -> None:
    assert verdict(Fleet(instances=3, surge=1), ROOM) == [
        Line("kept open (pool-size)", 30, 0),
        Line("at most (with max-overflow)", 90, 0),
        Line("at most, while 1 more instance starts", 120, 30),
    ]


@given(
    instances=st.integers(1, 9),
    workers=st.integers(1, 9),
    surge=st.integers(0, 3),
    recycles=st.booleans(),
    most=st.integers(10, 500),
)
def test_what_is_said_to_fit_fits(instances: int, workers: int, surge: int, recycles: bool, most: int) -> None:
    fleet, room = Fleet(instances=instances, workers=workers, surge=surge, recycles=recycles), replace(ROOM, others={})
    room = replace(room, max_connections=most)
    words = what_fits(fleet, room).split()
    if words[0] != "--pool-size":
        assert fleet.most_processes > room.tightest[1]
        return
    smaller = replace(fleet, pool_size=int(words[1]), max_overflow=int(words[3]))
    assert not any(line.too_many for line in verdict(smaller, room))


def test_a_service_that_fits_has_nothing_to_be_told() -> None:
    assert shortage(90, ROOM) is None
    assert shortage(91, ROOM) == (
        "may open 91 connections and the database has room for 90 (max_connections 100, 5 of them reserved, 5 used by "
        "others); beyond that requests wait; see `pooldrain plan`"
    )
