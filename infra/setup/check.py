"""Lint, types, and the tests nearest to what changed: `make check`, in two minutes.

Near are the test files that changed themselves, that lie in the folder which mirrors a changed file's, or that import a
changed file. Tests that reach it through other files are left out, and those that the time does not allow; both are
named. `make test` runs them all.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

PACKAGES = ("flows", "components", "data_prep", "evaluation", "infra", "tests")
SECONDS = 75.0
"""After which no further test begins; the longest takes three quarters of a minute."""
NAMED_MAX = 12
Graph = Mapping[str, frozenset[str]]
"""By file, the files of the project that it imports."""


def changed_files(root: Path, since: str) -> list[str]:
    """What differs from the commit `since`: committed, not yet committed, untracked, deleted.

    Raises:
        SystemExit: there is no such commit.
    """
    names: set[str] = set()
    for command in (
        ["diff", "--name-only", "--no-renames", since, "--"],
        ["ls-files", "--others", "--exclude-standard"],
    ):
        done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"[check] git: {done.stderr.strip()}\nName a commit: make check SINCE=main")
        names.update(done.stdout.splitlines())
    return sorted(names)


def import_graph(root: Path) -> Graph:
    """Of all Python files of the packages, imports inside functions included."""
    files = {path.relative_to(root).as_posix() for name in PACKAGES for path in (root / name).rglob("*.py")}
    return {file: frozenset(_imported((root / file).read_text(encoding="utf-8"), files)) for file in sorted(files)}


def _imported(source: str, files: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (file for alias in node.names if (file := _file_of(alias.name, files)))
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                file = _file_of(f"{node.module}.{alias.name}", files) or _file_of(node.module, files)
                if file:
                    yield file


def _file_of(module: str, files: set[str]) -> str | None:
    path = module.replace(".", "/")
    return next((file for file in (f"{path}.py", f"{path}/__init__.py") if file in files), None)


@dataclass(frozen=True)
class Choice:
    """Test files to run, the nearest first, and those left out, which reach a change through other files only."""

    near: list[str]
    far: list[str]


def choose(changed: list[str], graph: Graph) -> Choice:
    """The tests of the changed files; a deleted one has the tests of its folder."""
    distance: dict[str, int] = {}
    for test in graph:
        if is_test(test) and (ways := [way for file in changed if (way := _distance(test, file, graph)) is not None]):
            distance[test] = min(ways)
    near = sorted(distance, key=lambda test: (distance[test], test))
    reached = _reaching(set(changed), graph)
    return Choice(near, sorted(test for test in reached if is_test(test) and test not in distance))


def is_test(file: str) -> bool:
    path = PurePosixPath(file)
    return path.parts[0] == "tests" and path.name.startswith("test_") and path.suffix == ".py"


def _distance(test: str, changed: str, graph: Graph) -> int | None:
    """0: the file itself or the test of its name; 1: it imports it; 2: it mirrors its folder; None: further away."""
    test_path, path = PurePosixPath(test), PurePosixPath(changed)
    mirror = path.parent if path.parts[0] == "tests" else PurePosixPath("tests") / path.parent
    if test == changed or (test_path.parent == mirror and test_path.name == f"test_{path.stem}.py"):
        return 0
    if changed in graph[test]:
        return 1
    # A file beside the packages (README, Makefile) mirrors none of them.
    return 2 if test_path.parent == mirror and path.parts[0] in PACKAGES else None


def _reaching(changed: set[str], graph: Graph) -> set[str]:
    """All files that import one of `changed`, through however many others."""
    reached, new = set(changed), set(changed)
    while new:
        new = {file for file, imports in graph.items() if imports & new} - reached
        reached |= new
    return reached


@dataclass
class InTime:
    """A pytest plugin: begins no test once the time is over, and knows which tests did not run."""

    until: float
    """Of `time.monotonic`."""
    waiting: dict[str, None] = field(default_factory=dict)
    failed: int = 0

    def pytest_collection_finish(self, session: Any) -> None:
        self.waiting = dict.fromkeys(item.nodeid for item in session.items)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed += report.failed
        if report.when == "teardown":
            self.waiting.pop(report.nodeid, None)

    def pytest_runtest_protocol(self, item: Any) -> bool | None:
        if time.monotonic() < self.until:
            return None
        item.session.shouldstop = "the time is over"
        return True  # as if it had been run


def run_tests(files: list[str], until: float) -> tuple[bool, list[str]]:
    """Whether what ran passed, and the tests that were left out."""
    import pytest

    plugin = InTime(until)
    code = pytest.main(["--quiet", "--no-header", *files], plugins=[plugin])
    stopped = code == pytest.ExitCode.INTERRUPTED and bool(plugin.waiting) and time.monotonic() > until
    good = plugin.failed == 0 and (stopped or code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED))
    return good, list(plugin.waiting) if stopped else []


def say_left_out(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
        print(f"[check] left out, {what} ({len(names)}): {', '.join(names[:NAMED_MAX])}{more}")


def main() -> int:
    """The exit code: 0 where all that ran is well."""
    parser = argparse.ArgumentParser(description="Lint, types and the tests nearest to what changed.")
    parser.add_argument("--since", default="HEAD~1", help="the commit before the changes (the last one but one)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which no further test begins")
    asked = parser.parse_args()
    until, root = time.monotonic() + asked.seconds, Path.cwd()

    changed = changed_files(root, asked.since)
    graph = import_graph(root)
    choice = choose(changed, graph)
    print(
        f"[check] {len(changed)} files changed since {asked.since}; {len(choice.near)} test files are near", flush=True
    )
    packages = [name for name in PACKAGES if (root / name).is_dir()]
    styles = [
        subprocess.run([sys.executable, "-m", "ruff", *command, *packages], check=False).returncode == 0
        for command in (["check", "--quiet"], ["format", "--check", "--quiet"])
    ]
    with subprocess.Popen([sys.executable, "-m", "mypy"], stdout=subprocess.PIPE, text=True) as types:
        tested, late = run_tests(choice.near, until) if choice.near else (True, [])
        said, _ = types.communicate()
    print(f"[check] mypy: {said.strip()}")
    say_left_out("as the time is over", late)
    say_left_out("as they reach the change through other files only", choice.far)
    print("[check] `make test` runs everything.")
    return 0 if all(styles) and types.returncode == 0 and tested else 1


if __name__ == "__main__":
    sys.exit(main())
