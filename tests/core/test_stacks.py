"""A call site is the user's own line; finding it follows pointers, and words are made only when it is shown."""

from __future__ import annotations

import builtins
import linecache
import sys
import traceback
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, cast

import pytest

from pooldrain.stacks import DEPTH, CallSite, RawStack, StackWalker, call_sites

Capture = Callable[[], RawStack]


def library(file: str) -> Callable[[Capture], RawStack]:
    """A function that belongs to `file` and calls what it is given."""
    names: dict[str, Any] = {}
    exec(compile("def call(function):\n    return function()\n", file, "exec"), names)
    return cast(Callable[[Capture], RawStack], names["call"])


def capture_with(walker: StackWalker) -> Capture:
    return lambda: walker.capture(sys._getframe(1))


def line_of(marker: str) -> int:
    """The line of this file that ends with the comment `marker`."""
    lines = linecache.getlines(__file__)
    return next(number for number, line in enumerate(lines, 1) if line.rstrip().endswith(f"# {marker}"))


# -- the right line


def test_the_innermost_site_is_the_line_that_called() -> None:
    stack = StackWalker(()).capture(sys._getframe())  # here
    name = test_the_innermost_site_is_the_line_that_called.__qualname__
    assert call_sites(stack)[0] == CallSite(__file__, line_of("here"), name)
    assert str(call_sites(stack)[0]) == f"{__file__}:{line_of('here')} in {name}"


def test_who_called_the_caller_comes_next() -> None:
    def inner() -> RawStack:
        return StackWalker(()).capture(sys._getframe())  # innermost

    def outer() -> RawStack:
        return inner()  # next

    sites = call_sites(outer())
    assert [site.line for site in sites[:2]] == [line_of("innermost"), line_of("next")]
    assert [site.function.rpartition(".")[2] for site in sites[:2]] == ["inner", "outer"]


def test_the_line_is_that_of_the_moment_and_not_where_the_frame_has_got_to_since() -> None:
    walker = StackWalker(())
    stacks = [
        walker.capture(sys._getframe()),  # first of two
        walker.capture(sys._getframe()),  # second of two
    ]
    lines = [call_sites(stack)[0].line for stack in stacks]
    assert lines == [line_of("first of two"), line_of("second of two")]


def test_a_loop_and_an_exception_handler_are_at_their_own_lines() -> None:
    walker = StackWalker(())
    stacks: list[RawStack] = []
    for _ in range(2):
        try:
            raise KeyError
        except KeyError:
            stacks.append(walker.capture(sys._getframe()))  # in the handler
    assert {call_sites(stack)[0].line for stack in stacks} == {line_of("in the handler")}


@pytest.mark.parametrize("function", [call_sites, StackWalker.capture, library], ids=lambda function: function.__name__)
def test_every_instruction_is_at_the_line_it_was_compiled_from(function: Callable[..., Any]) -> None:
    code = cast(Any, function).__code__
    for number, (line, *_) in enumerate(code.co_positions()):
        if line is not None:
            (site,) = call_sites(((code, 2 * number),))
            assert site.line == line


def test_an_instruction_that_has_no_line_is_shown_at_the_function() -> None:
    code = line_of.__code__
    (site,) = call_sites(((code, 10**6),))
    assert site.line == code.co_firstlineno


# -- what is skipped


def test_frames_of_libraries_are_skipped_until_the_users_first_line() -> None:
    walker = StackWalker(("/site/engine", "/site/driver"))
    engine, driver = library("/site/engine/base.py"), library("/site/driver/core.py")
    stack = engine(lambda: driver(lambda: walker.capture(sys._getframe(1))))
    assert call_sites(stack)[0].file == __file__
    assert call_sites(driver(capture_with(walker)))[0].file == __file__


def test_a_library_around_the_users_line_is_not_skipped() -> None:
    framework = library("/site/framework/app.py")
    walker = StackWalker(("/site/framework",))
    sites = call_sites(framework(lambda: walker.capture(sys._getframe())))
    assert [site.file for site in sites[:2]] == [__file__, "/site/framework/app.py"]


def test_where_every_frame_is_a_librarys_there_is_no_call_site() -> None:
    assert StackWalker(("",)).capture(sys._getframe()) == ()
    assert StackWalker(()).capture(None) == ()
    assert call_sites(()) == ()


# -- what it costs


class CountedFrame:
    """Stands for a frame, and counts how often somebody asks for its caller."""

    visits = 0

    def __init__(self, code: CodeType, caller: CountedFrame | None) -> None:
        self.f_code = code
        self.f_lasti = 0
        self._caller = caller

    @property
    def f_back(self) -> CountedFrame | None:
        CountedFrame.visits += 1
        return self._caller


def chain(*files: str) -> FrameType:
    """Frames of these files, innermost first."""
    frame: CountedFrame | None = None
    for file in reversed(files):
        frame = CountedFrame(compile("", file, "exec"), frame)
    CountedFrame.visits = 0
    return cast(FrameType, frame)


@pytest.mark.parametrize("depth", [1, DEPTH, 7])
def test_only_so_many_of_the_users_frames_are_kept_and_no_more_are_visited(depth: int) -> None:
    walker = StackWalker(("/skip",), depth=depth)
    stack = walker.capture(chain(*["/skip/a.py"] * 5, *["/user.py"] * 1000))
    assert len(stack) == depth
    assert CountedFrame.visits == 5 + depth


def test_a_short_stack_is_kept_whole() -> None:
    assert len(StackWalker(()).capture(chain("/a.py", "/b.py"))) == 2


def test_nothing_is_opened_and_nothing_is_put_into_words_until_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> Any:
        raise AssertionError("too expensive for a checkout")

    walker = StackWalker(("/site",))
    engine = library("/site/engine/base.py")
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", forbidden)
        for name in ("getline", "getlines", "checkcache", "updatecache", "lazycache"):
            patch.setattr(linecache, name, forbidden)
        for name in ("extract_stack", "walk_stack", "format_stack", "StackSummary", "FrameSummary"):
            patch.setattr(traceback, name, forbidden)
        patch.setattr(CallSite, "__init__", forbidden)
        stack = engine(capture_with(walker))
    assert {(type(code), type(lasti)) for code, lasti in stack} == {(CodeType, int)}
    assert call_sites(stack)[0].file == __file__
