"""What a process sees to about its memory, each in a process of its own."""

from __future__ import annotations

import os
import platform

import pytest

from pooldrain.runtime.process.memory import ARENAS
from tests.harness.programs import printed_by

# Many threads that allocate, none of which has ended when the allocator is asked how many arenas it has made.
PROGRAM = """
import ctypes, re, sys, threading
from pooldrain.runtime.process.memory import limit_arenas
limit_arenas()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
allocated, told = threading.Barrier(31), threading.Event()
def allocate():
    libc.malloc(1000)
    allocated.wait()
    told.wait()
for _ in range(30):
    threading.Thread(target=allocate, daemon=True).start()
allocated.wait()
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(len(re.findall("<heap nr", open(sys.argv[1]).read())))
"""

of_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator, which is not told")


def arenas(tmp_path: os.PathLike[str], **environment: str) -> int:
    return int(printed_by(PROGRAM, os.path.join(tmp_path, "arenas"), **environment))  # noqa: PTH118 - a path for C


@of_glibc
def test_many_threads_share_few_arenas(tmp_path: os.PathLike[str]) -> None:
    assert arenas(tmp_path) <= ARENAS


@of_glibc
def test_what_the_user_has_set_for_the_allocator_stays(tmp_path: os.PathLike[str]) -> None:
    assert arenas(tmp_path, MALLOC_ARENA_MAX="5") == 5


def test_what_is_loaded_is_looked_at_neither_while_it_is_loaded_nor_later() -> None:
    program = """
import gc
from pooldrain.runtime.process.memory import loading
gc.collect()
usual, looks = gc.get_threshold(), sum(each["collections"] for each in gc.get_stats())
with loading():
    kept = [[] for _ in range(100_000)]
    looks_then = sum(each["collections"] for each in gc.get_stats())
print(looks_then - looks, len(gc.get_objects()) < 1_000, gc.get_threshold() == usual, gc.isenabled())
"""
    assert printed_by(program) == "0 True True True\n"


def test_what_fails_to_load_leaves_the_collector_as_it_was() -> None:
    program = """
import gc
from pooldrain.runtime.process.memory import loading
gc.set_threshold(123, 4, 5)
try:
    with loading():
        raise ImportError
except ImportError:
    print(gc.get_threshold())
"""
    assert printed_by(program) == "(123, 4, 5)\n"
