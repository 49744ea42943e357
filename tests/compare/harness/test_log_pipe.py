"""A process's output, as far as it has been written."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from pooldrain_compare.harness.log_pipe import LogPipe
from tests.harness.waiting import BOUND


@dataclass
class Process:
    """What writes, and what it was heard to say."""

    output: FileIO
    log: LogPipe
    heard: list[bytes] = field(default_factory=list)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    reader, writer = os.pipe()
    heard: list[bytes] = []
    with FileIO(reader) as pipe, FileIO(writer, "w") as output, FileIO(str(tmp_path / "log"), "w") as file:
        log = LogPipe(pipe, file, heard.append)
        yield Process(output, log, heard)
        output.close()
        if not pipe.closed:
            log.follow()


def test_what_was_written_is_there_although_nobody_has_followed_yet(process: Process) -> None:
    assert process.log.lines() == []
    process.output.write(b"one\ntwo\n")
    assert process.log.lines() == ["one", "two"]
    assert process.heard == [b"one\n", b"two\n"]


def test_a_line_is_there_once_it_is_whole(process: Process) -> None:
    process.output.write(b'one\n{"half": ')
    assert process.log.lines() == ["one"]
    process.output.write(b"2}\n")
    assert process.log.lines() == ["one", '{"half": 2}']


def test_of_a_line_that_is_just_being_written_down_not_half_is_seen(tmp_path: Path) -> None:
    half_written = threading.Event()

    class Slow(FileIO):
        """Its writes are seen in two halves, of which the first comes while its reader is about to look."""

        @property
        def name(self) -> str:
            os.write(writer, b"two\n")
            half_written.wait(0.2)  # in vain, if the reader keeps others from writing
            return str(tmp_path / "log")

        @name.setter
        def name(self, given: str) -> None:
            pass

        def write(self, data: Any) -> int:
            done = super().write(data[:2])
            half_written.set()
            looked.wait()
            return done + super().write(data[2:])

    looked = threading.Event()
    looked.set()
    reader, writer = os.pipe()
    with FileIO(reader) as pipe, Slow(str(tmp_path / "log"), "w") as file:
        log = LogPipe(pipe, file, lambda line: None)
        following = threading.Thread(target=log.follow)
        following.start()
        os.write(writer, b"one\n")
        assert half_written.wait(BOUND)
        half_written.clear()
        looked.clear()
        seen = log.lines()
        looked.set()
        os.close(writer)
        following.join()
        assert seen == ["one"]


def test_following_ends_with_the_last_writer_and_keeps_what_was_not_a_whole_line(process: Process) -> None:
    following = threading.Thread(target=process.log.follow)
    following.start()
    process.output.write(b"one\n" * 5_000)
    process.output.write(b"the end")
    process.output.close()
    following.join()
    assert process.log.lines() == ["one"] * 5_000 + ["the end"]
