"""What the documents name exists: files and folders, modules, make targets."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "infra/pocket/weights/README.md",
    *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")),
]
ROOMS = "flows|components|data_prep|evaluation|infra|tests|docs"
PATH = re.compile(rf"(?<![\w./-])(?:{ROOMS})/[\w./*-]+")
MODULE = re.compile(rf"(?<![\w./])(?:{ROOMS})(?:\.\w+)+")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[\w-]+)?\)")
TARGET = re.compile(r"(?:`|^ +)make ([a-z][a-z-]*)", re.M)


@pytest.fixture(scope="module", params=DOCUMENTS)
def document(request) -> Path:
    return ROOT / request.param


def missing_paths(text: str) -> Iterator[str]:
    for found in PATH.findall(text):
        name = found.rstrip("./")
        if not any(ROOT.glob(name)) and not any(ROOT.glob(f"{name}.py")):
            yield name


def missing_names(text: str) -> Iterator[str]:
    """`components.stages.plan` is a module, `infra.config.Config` a name in one."""
    for name in MODULE.findall(text):
        path = ROOT / name.replace(".", "/")
        if path.is_dir() or path.with_suffix(".py").is_file():
            continue
        module, _, attribute = name.rpartition(".")
        file = (ROOT / module.replace(".", "/")).with_suffix(".py")
        if not (file.is_file() and re.search(rf"\b{attribute}\b", file.read_text(encoding="utf-8"))):
            yield name


def test_paths_exist(document: Path):
    assert sorted(set(missing_paths(document.read_text(encoding="utf-8")))) == []


def test_modules_and_their_names_exist(document: Path):
    assert sorted(set(missing_names(document.read_text(encoding="utf-8")))) == []


def test_links_lead_somewhere(document: Path):
    links = LINK.findall(document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_make_targets_exist(document: Path):
    targets = set(TARGET.findall(document.read_text(encoding="utf-8")))
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert targets <= there


def test_what_does_not_exist_is_seen():
    text = "See `components/no/such.py`, docs/log.md, `components.train.no_such` and `infra.config.NoSuch`."
    assert list(missing_paths(text)) == ["components/no/such.py"]
    assert list(missing_names(text)) == ["components.train.no_such", "infra.config.NoSuch"]


def test_the_documents_are_all_here():
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(tracked.split()) == set(DOCUMENTS)
