"""Imports go one way: infra ← components ← {data_prep, evaluation} ← flows. Prefect and Ray stay where they belong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("infra", "components", "data_prep", "evaluation", "flows")
MAY_IMPORT = {
    "infra": {"infra"},
    "components": {"infra", "components"},
    "data_prep": {"infra", "components", "data_prep"},
    "evaluation": {"infra", "components", "evaluation"},
    "flows": set(PARTS),
}
ONLY_UNDER = {
    "prefect": ("flows/",),
    "ray": ("data_prep/", "infra/"),
    "typer": ("flows/",),
    "great_expectations": ("data_prep/",),
    "open_clip": ("components/clip/", "evaluation/", "infra/pocket/"),
}


def files() -> list[Path]:
    return sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))


def imported(source: str) -> Iterator[str]:
    """Top-level names of every import, those inside functions and under TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module).split(".")[0]


def violations(relative: str, source: str) -> list[str]:
    part = relative.split("/")[0]
    allowed = MAY_IMPORT[part]
    found = []
    for name in imported(source):
        if name in PARTS and name not in allowed:
            found.append(f"{relative} imports {name}")
        if name in ONLY_UNDER and not relative.startswith(ONLY_UNDER[name]):
            found.append(f"{relative} imports {name}, which belongs under {' and '.join(ONLY_UNDER[name])}")
    return found


def test_every_part_is_there():
    assert {path.relative_to(ROOT).parts[0] for path in files()} == set(PARTS)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path):
    assert violations(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("components/x.py", "import ray"),
        ("components/x.py", "def f():\n    from data_prep.cache.cache import LatentCache"),
        ("data_prep/x.py", "from evaluation import report"),
        ("infra/x.py", "from components import trainer"),
        ("evaluation/x.py", "import prefect.artifacts"),
    ],
)
def test_a_wrong_import_is_seen(relative: str, source: str):
    assert len(violations(relative, source)) == 1
