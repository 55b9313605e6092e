"""`make check` in a small repository of its own: what counts as changed, which tests are near, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.setup.check import changed_files, choose, import_graph

ROOT = Path(__file__).resolve().parents[3]
FILES = {
    "infra/__init__.py": "",
    "infra/low.py": "ONE = 1\n",
    "infra/deep/__init__.py": "",
    "infra/deep/low.py": "TWO = 2\n",
    "components/__init__.py": "",
    "components/high.py": "def two() -> int:\n    from infra.low import ONE\n\n    return 2 * ONE\n",
    "tests/__init__.py": "",
    "tests/infra/__init__.py": "",
    "tests/infra/test_low.py": "from infra.low import ONE\n\n\ndef test_one():\n    assert ONE == 1\n",
    "tests/infra/test_other.py": "def test_other():\n    assert True\n",
    "tests/infra/deep/__init__.py": "",
    "tests/infra/deep/test_low.py": "def test_deep():\n    assert True\n",
    "tests/components/__init__.py": "",
    "tests/components/test_high.py": "from components.high import two\n\n\ndef test_two():\n    assert two() == 2\n",
    "tests/components/test_names.py": "from infra import low\n\n\ndef test_it():\n    assert low.ONE\n",
    "README.md": "words\n",
    "pyproject.toml": '[tool.mypy]\npackages = ["infra", "components"]\nstrict = true\n',
}


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two commits; the second one changed the README."""
    root = tmp_path / "project"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root.parent, "init", "--quiet", str(root))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    (root / "README.md").write_text("other words\n")
    git(root, "commit", "--quiet", "-a", "-m", "second")
    return root


def check(root: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, ROOT / "infra/setup/check.py", *arguments],  # by its path: `infra` is the small one's
        cwd=root, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_committed_uncommitted_untracked_and_deleted_files_have_changed(project: Path):
    assert changed_files(project, "HEAD~1") == ["README.md"]
    (project / "infra/low.py").write_text("ONE = 2\n")
    (project / "components/new.py").write_text("")
    (project / "infra/deep/low.py").unlink()
    assert changed_files(project, "HEAD") == ["components/new.py", "infra/deep/low.py", "infra/low.py"]
    assert changed_files(project, "HEAD~1")[0] == "README.md"
    with pytest.raises(SystemExit, match="Name a commit"):
        changed_files(project, "nowhere")


def test_the_graph_has_imports_of_modules_names_and_functions(project: Path):
    graph = import_graph(project)
    assert graph["components/high.py"] == {"infra/low.py"}
    assert graph["tests/components/test_names.py"] == {"infra/low.py"}
    assert graph["tests/infra/test_low.py"] == {"infra/low.py"}
    assert graph["infra/low.py"] == frozenset()


def test_the_nearest_come_first_and_the_rest_is_left_out(project: Path):
    graph = import_graph(project)
    found = choose(["infra/low.py"], graph)
    assert found.near == ["tests/infra/test_low.py", "tests/components/test_names.py", "tests/infra/test_other.py"]
    assert found.far == ["tests/components/test_high.py"]
    assert choose(["tests/infra/deep/test_low.py"], graph).near == ["tests/infra/deep/test_low.py"]
    assert choose(["infra/deep/gone.py"], graph).near == ["tests/infra/deep/test_low.py"]
    assert choose(["README.md", "Makefile"], graph).near == []
    assert choose([], graph) == choose(["README.md"], graph)


def test_this_project_s_own_files_have_near_tests():
    graph = import_graph(ROOT)
    assert "tests/infra/setup/test_check.py" in choose(["infra/setup/check.py"], graph).near
    assert choose(["infra/errors.py"], graph).far


def test_it_runs_what_is_near_and_says_what_is_left_out(project: Path):
    (project / "infra/low.py").write_text("ONE = 1  # still\n")
    code, said = check(project)
    assert code == 0, said
    assert "3 test files are near" in said
    assert "3 passed" in said
    assert "Success: no issues found" in said
    assert "through other files only (1): tests/components/test_high.py" in said

    code, said = check(project, "--seconds", "0")
    assert code == 0, said
    assert "as the time is over (3): tests/infra/test_low.py::test_one" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [("ONE = 2\n", "1 failed"), ("ONE: str = 1\n", "Incompatible types"), ("import os\nONE = 1\n", "F401")],
)
def test_a_red_test_a_wrong_type_and_bad_style_are_exit_code_1(project: Path, text: str, words: str):
    (project / "infra/low.py").write_text(text)
    code, said = check(project)
    assert code == 1, said
    assert words in said
