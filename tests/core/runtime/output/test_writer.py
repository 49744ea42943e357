"""Output that nobody takes keeps nobody; what is lost is counted and told."""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pooldrain.runtime.output.writer import PATIENCE, Output, explain, open_for_appending

LINE = b"x" * 999 + b"\n"
SLOW = 2.0  # seconds more that a busy machine may take


def lost(lines: int) -> bytes:
    return b"%d lost\n" % lines


@dataclass
class Pipe:
    """A pipe, of which somebody reads when the test says so."""

    output: Output
    reader: int

    def read(self) -> bytes:
        """All that is there."""
        data = b""
        while select.select([self.reader], [], [], 0)[0]:
            data += os.read(self.reader, 65536)
        return data

    def fill(self) -> int:
        """Write until lines are lost; how many were taken, and one that was not."""
        taken = 0
        while not self.output._lost:
            self.output.write(LINE)
            taken += 1
        return taken - 1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 16384)
    yield Pipe(Output(writer, lost), reader)
    os.close(reader)
    os.close(writer)


def test_what_somebody_reads_comes_as_it_was_written(pipe: Pipe) -> None:
    pipe.output.write(b"one\n")
    pipe.output.write(b"two\n")
    assert pipe.read() == b"one\ntwo\n"


def test_a_pipe_that_nobody_reads_keeps_the_writer_once_and_not_for_each_line(pipe: Pipe) -> None:
    started = time.monotonic()
    pipe.fill()
    for _ in range(10_000):
        pipe.output.write(LINE)
    assert time.monotonic() - started < PATIENCE + SLOW


def test_what_was_lost_is_told_before_the_next_line_that_is_taken(pipe: Pipe) -> None:
    taken = pipe.fill()
    pipe.output.write(LINE)
    assert pipe.read() == LINE * taken, "each line whole"
    pipe.output.write(b"again\n")
    assert pipe.read() == b"2 lost\nagain\n"


def test_a_line_longer_than_the_pipe_is_ended_before_the_next_one_begins(pipe: Pipe) -> None:
    long = b"y" * 40_000 + b"\n"
    pipe.output.write(long)  # as much of it as there is room for
    pipe.output.write(b"lost meanwhile\n")
    data = pipe.read()
    for _ in range(4):
        pipe.output.write(b"next\n")
        data += pipe.read()
    assert data.startswith(long)
    told, *rest = data[len(long) :].split(b"\n")
    assert told.endswith(b" lost")
    assert set(rest) == {b"next", b""}


def test_a_child_does_not_write_what_its_parent_has_left(pipe: Pipe) -> None:
    pipe.fill()
    if not (child := os.fork()):
        pipe.read()
        pipe.output.write(b"child\n")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert pipe.read() == b"child\n"


def test_a_broken_pipe_is_told_by_its_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    output = Output(writer, lost)
    with pytest.raises(BrokenPipeError):
        output.write(LINE)
    os.close(writer)


def test_a_file_takes_lines_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "file"
    descriptor = open_for_appending(path)
    output = Output(descriptor, lost)
    output.write(b"z" * 1_000_000 + b"\n")
    output.write(b"end\n")
    os.close(descriptor)
    assert path.read_bytes() == b"z" * 1_000_000 + b"\nend\n"


def test_a_named_pipe_that_nobody_reads_is_an_error_and_no_wait(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device") as refused:
        open_for_appending(path)
    assert explain(refused.value) == "nobody reads this named pipe"
