"""A process's output, as far as it has been written."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import pytest

from pooldrain_compare.harness.log_pipe import LogPipe


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


def test_following_ends_with_the_last_writer_and_keeps_what_was_not_a_whole_line(process: Process) -> None:
    following = threading.Thread(target=process.log.follow)
    following.start()
    process.output.write(b"one\n" * 5_000)
    process.output.write(b"the end")
    process.output.close()
    following.join()
    assert process.log.lines() == ["one"] * 5_000 + ["the end"]
