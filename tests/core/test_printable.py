"""What comes from outside reaches a log in one line, and rules no terminal."""

from __future__ import annotations

import json
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pooldrain.printable import json_line, printable, traceback_lines

# Line breaks of all kinds, terminal controls (C0 and C1), marks of direction, half of a surrogate pair.
NASTY = "a\nb\r\x0b\x0c\x1b[31m\x7f\x85\x9b1m\u2028\u2029\u202e\u2066\u200b\ud800"
texts = st.text(st.characters())


def test_what_is_not_printable_is_escaped() -> None:
    assert printable(NASTY) == (
        "a\\nb\\r\\x0b\\x0c\\x1b[31m\\x7f\\x85\\x9b1m\\u2028\\u2029\\u202e\\u2066\\u200b\\ud800"
    )


@pytest.mark.parametrize("text", ["GET /orders", "数据库连接池", "naïve café", "back\\slash", "😀", ""])
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@given(texts)
def test_whatever_comes_is_printable(text: str) -> None:
    assert printable(text).isprintable()


@given(texts)
def test_json_is_one_printable_line_that_says_the_same(text: str) -> None:
    line = json_line({"message": text, "nested": [{"text": text}]})
    assert line.isprintable()
    assert json.loads(line) == {"message": text, "nested": [{"text": text}]}
    line.encode()


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - of any kind
        return caught


def chained(text: str) -> BaseException:
    try:
        try:
            raise KeyError(text)
        except KeyError as inner:
            raise ValueError(text) from inner
    except ValueError as outer:
        outer.add_note(text)
        return raised(ExceptionGroup(text, [outer, OSError(text)]))


@given(texts)
def test_no_text_of_an_exception_is_more_than_a_part_of_its_line(text: str) -> None:
    lines = list(traceback_lines(chained(text)))
    assert all(line.isprintable() for line in lines)
    assert len(lines) == len(list(traceback_lines(chained("harmless"))))


def test_a_traceback_is_as_python_prints_it() -> None:
    def fail() -> None:
        try:
            raise KeyError("inner")
        except KeyError:
            raise ValueError("outer")  # noqa: B904 - the context is what is told

    with pytest.raises(ValueError, match="outer") as caught:
        fail()
    expected = "".join(traceback.format_exception(caught.value)).rstrip("\n").split("\n")
    assert list(traceback_lines(caught.value)) == expected


def test_an_exception_that_cannot_say_what_it_is_is_named_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert list(traceback_lines(Mute()))[-1].endswith("Mute: <exception str() failed>")
