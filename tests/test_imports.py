"""The architecture, held: who may import whom, and that what decides neither waits nor reads a clock."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import pooldrain

CORE = Path(pooldrain.__file__).parent
ROOT = CORE.parents[1]
PACKAGES = {
    "pooldrain": CORE,
    "pooldrain_sync": ROOT / "sync_impl" / "pooldrain_sync",
    "pooldrain_async": ROOT / "async_impl" / "pooldrain_async",
    "pooldrain_compare": ROOT / "compare" / "pooldrain_compare",
}

# Each module of the core may import those before it. `sqla`, `admin`, `runtime` are packages, free within themselves.
ORDER = [
    "printable",
    "access",
    "current",
    "teardown",
    "errors",
    "servers",
    "exit_codes",
    "request_head",
    "proxies",
    "policy",
    "budget",
    "stacks",
    "phases",
    "leak_rules",
    "in_flight",
    "gate",
    "ledger",
    "meter",
    "snapshot",
    "shutdown",
    "service_report",
    "status",
    "answers",
    "probes",
    "problems",
    "demo",
    "transcript",
    "sqla",
    "lifecycle",
    "admin",
    "runtime",
    "pytest_plugin",
]
# What decides: everything but the pool, the edges, and what another program loads. From the standard library it may
# have what only computes.
DECIDING = [name for name in ORDER if name not in ("sqla", "admin", "runtime", "pytest_plugin")]
HARMLESS = {
    "__future__",
    "bisect",
    "collections.abc",
    "contextlib",
    "contextvars",
    "dataclasses",
    "datetime",
    "enum",
    "functools",
    "http",
    "importlib.metadata",
    "ipaddress",
    "itertools",
    "json",
    "math",
    "re",
    "traceback",
    "types",
    "typing",
}
# The same inside `runtime`.
RUNTIME_ORDER = [
    *(
        "output",
        "process",
        "embedded",
        "listener",
        "tls",
        "activation",
        "options",
        "admin",
        "telemetry",
        "startup",
        "master",
        "assembly",
        "reload",
        "command",
        "plan",
        "tool",
    ),
]

COMPARISON = PACKAGES["pooldrain_compare"]
_STAND_ON = {"harness", "checker", "normal_form"}
# The rooms of the comparison, and what each may import of the others.
ROOMS: dict[str, set[str]] = {
    "checker": set(),
    "normal_form": set(),
    "harness": set(),
    "baselines": set(),
    "demo": {"harness"},
    "parity": _STAND_ON,
    "fuzz": _STAND_ON,
    "chaos": {"harness", "checker"},
    "fleet": {"harness"},
    "inside": {"bench", "harness"},
    "bench": {"harness", "baselines"},
    "reports": {"bench"},
    "cli": {"demo", "parity", "fuzz", "chaos", "fleet", "inside", "bench", "reports", "harness"},
    "__main__": {"cli"},
}
IMPORTS_NOTHING_OF_OURS = {"checker", "normal_form", "baselines"}
# Where the shells are imported, by folder: they are driven, measured, or played on there.
_BOTH = {"pooldrain_sync", "pooldrain_async"}
SHELLS = {"parity/app": _BOTH, "fuzz": _BOTH, "bench": _BOTH}
CLOCKS = {"time", "monotonic", "perf_counter", "process_time", "now", "utcnow", "today", "sleep"}


class Imports(ast.NodeVisitor):
    """The modules that a file imports, wherever in it, but for those that only type checkers import."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_If(self, node: ast.If) -> None:  # the name is ast's
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.names.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert not node.level, "imports are absolute here"
        assert node.module
        # `from pooldrain import gate` and `from pooldrain.gate import RequestGate` both say pooldrain.gate.
        inside = [f"{node.module}.{alias.name}" for alias in node.names]
        modules = [name for name in inside if is_module(name)]
        self.names.update(modules or [node.module])


def is_module(name: str) -> bool:
    package, *parts = name.split(".")
    path = PACKAGES.get(package, Path()).joinpath(*parts)
    return package in PACKAGES and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


@cache
def imports(file: Path) -> frozenset[str]:
    visitor = Imports()
    visitor.visit(ast.parse(file.read_text(encoding="utf-8")))
    return frozenset(visitor.names)


def files(package: str) -> Iterator[Path]:
    found = sorted(PACKAGES[package].rglob("*.py"))
    assert found
    return iter(found)


def rooms_of(folder: Path) -> set[str]:
    """The modules and packages directly in a folder."""
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return modules | {path.parent.name for path in folder.glob("*/__init__.py")}


def room_files(folder: Path, room: str) -> list[Path]:
    """The files of one of them."""
    module = folder / f"{room}.py"
    found = [module] if module.is_file() else sorted((folder / room).rglob("*.py"))
    assert found
    return found


def imported_packages(package: str) -> set[str]:
    return {name.split(".")[0] for file in files(package) for name in imports(file)} & set(PACKAGES)


# -- between the packages


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("pooldrain", {"pooldrain"}),
        ("pooldrain_sync", {"pooldrain", "pooldrain_sync"}),
        ("pooldrain_async", {"pooldrain", "pooldrain_async"}),
    ],
)
def test_the_core_knows_neither_shell_and_the_shells_do_not_know_each_other(package: str, allowed: set[str]) -> None:
    assert imported_packages(package) <= allowed


# -- inside the core


def test_every_module_of_the_core_has_its_place() -> None:
    assert rooms_of(CORE) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_inside_the_core_go_one_way(name: str) -> None:
    allowed = {f"pooldrain.{other}" for other in ORDER[: ORDER.index(name)]}
    for file in room_files(CORE, name):
        ours = {".".join(found.split(".")[:2]) for found in imports(file) if found.split(".")[0] == "pooldrain"}
        allowed_here = allowed | ({"pooldrain", f"pooldrain.{name}"} if name in ("sqla", "admin", "runtime") else set())
        assert ours <= allowed_here, file.name


def test_importing_the_package_brings_in_errors_policies_and_holders_but_no_sqlalchemy() -> None:
    ours = {found for found in imports(CORE / "__init__.py") if found.startswith("pooldrain")}
    later = {"pooldrain.sqla.tracking"}  # when `pooldrain.track` is asked for
    assert ours == {"pooldrain.current", "pooldrain.errors", "pooldrain.ledger", "pooldrain.policy", *later}
    check = "import pooldrain, sys; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize("name", ["__init__", *DECIDING])
def test_what_decides_imports_nothing_that_waits_talks_or_reads_a_clock(name: str) -> None:
    foreign = {found for found in imports(CORE / f"{name}.py") if found.split(".")[0] != "pooldrain"}
    assert foreign <= HARMLESS


@pytest.mark.parametrize("name", DECIDING)
def test_what_decides_calls_no_clock(name: str) -> None:
    tree = ast.parse((CORE / f"{name}.py").read_text(encoding="utf-8"))
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)
    }
    assert not called & CLOCKS
    if name != "lifecycle":  # which is handed the shell's clock
        assert "clock" not in called


@pytest.mark.parametrize("name", RUNTIME_ORDER)
def test_imports_inside_the_runtime_go_one_way(name: str) -> None:
    before = RUNTIME_ORDER[: RUNTIME_ORDER.index(name) + 1]
    for file in room_files(CORE / "runtime", name):
        ours = {found.split(".")[2] for found in imports(file) if found.startswith("pooldrain.runtime.")}
        assert ours <= set(before), file.name


def test_every_module_of_the_runtime_has_its_place() -> None:
    assert rooms_of(CORE / "runtime") == set(RUNTIME_ORDER)


# -- inside the comparison


def test_every_room_of_the_comparison_has_its_place() -> None:
    assert rooms_of(COMPARISON) == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_of_the_comparison_import_only_what_the_arrows_allow(room: str) -> None:
    for file in room_files(COMPARISON, room):
        found = {name.split(".")[1] for name in imports(file) if name.startswith("pooldrain_compare.")}
        entry = {"__main__"} if file.name == "__main__.py" else set[str]()  # `python -m` is the command
        assert found <= {room, *ROOMS[room]} | entry, file
        packages = {name.split(".")[0] for name in imports(file)} & set(PACKAGES) - {"pooldrain_compare"}
        core = set[str]() if room in IMPORTS_NOTHING_OF_OURS else {"pooldrain"}
        allowed = core | SHELLS.get(str(file.relative_to(COMPARISON).parent), set())
        assert packages <= allowed, file


def test_the_arrows_of_the_comparison_make_no_circle() -> None:
    left = dict(ROOMS)
    while left:
        free = [room for room, others in left.items() if not others & left.keys()]
        assert free, f"a circle among {', '.join(left)}"
        for room in free:
            del left[room]


def test_every_folder_tells_its_rule_in_five_lines() -> None:
    folders = {file.parent for package in ("pooldrain", "pooldrain_compare") for file in files(package)}
    for folder in folders:
        lines = (folder / "README.md").read_text("utf-8").splitlines()
        assert 0 < len(lines) <= 5, folder


# -- the test's own eyes


def test_an_import_is_seen_wherever_it_hides() -> None:
    visitor = Imports()
    visitor.visit(
        ast.parse(
            "import a.b\n"
            "from pooldrain import gate\n"
            "from pooldrain.ledger import Leak\n"
            "def f():\n    from c import d\n"
            "if TYPE_CHECKING:\n    import hidden\nelse:\n    import seen\n"
        )
    )
    assert visitor.names == {"a.b", "pooldrain.gate", "pooldrain.ledger", "c", "seen"}
