"""Imports go one way, between the rooms and inside them, and never in a circle; infra/setup/rooms.py has the tables."""

import ast
import re
from collections import Counter

import pytest

from infra.setup.rooms import (
    LAYERS,
    MAY_IMPORT,
    broken_rules,
    imports_of_files,
    imports_of_folders,
    layer_of,
    room_of,
    sources,
    unit_of,
)

FILES = sources()
FOLDERS = imports_of_folders(imports_of_files(FILES))
LINES_MAX = 300
FILES_MAX = 12


def test_every_room_is_there():
    assert {room_of(path) for path in FILES} == set(MAY_IMPORT) == set(LAYERS)


def test_imports_go_one_way_and_never_in_a_circle():
    assert broken_rules(FILES) == []


def test_every_folder_stands_in_a_layer_and_every_layer_exists():
    units = {unit_of(path) for path in FILES if path != f"{room_of(path)}/__init__.py"}
    assert [unit for unit in sorted(units) if layer_of(unit) is None] == []
    declared = {f"{room}/{name}" for room, layers in LAYERS.items() for layer in layers for name in layer}
    assert declared - units == set()


BROKEN = {
    "a room above": ({"components/files/a.py": "def f():\n    from data_prep.cache.cache import x"}, "may not import"),
    "a neighbour": ({"data_prep/cache/a.py": "from evaluation.report import report"}, "may not import evaluation"),
    "a layer above": ({"components/base/a.py": "import components.stages.b"}, "components/stages/b.py, which"),
    "the same layer": ({"components/lora/a.py": "from components.motion import b"}, "components/motion/b.py, which"),
    "a program that nothing imports": (
        {"infra/workers/a.py": "from infra.gpu_check import run", "infra/gpu_check/run.py": "import components.base.b"},
        "infra/workers/a.py imports infra/gpu_check/run.py: infra may not import infra/gpu_check",
    ),
    "a program on top": ({"infra/gpu_check/a.py": "import flows.cli.main"}, "infra/gpu_check may not import flows"),
    "a package": ({"components/train/a.py": "import ray.data"}, "imports ray, which belongs under data_prep/"),
    "Prefect": ({"evaluation/report/a.py": "import prefect.artifacts"}, "imports prefect, which belongs under flows/"),
    "a new folder": ({"components/video/a.py": "from components.files import b"}, "components/video stands in no"),
    "a circle of files": (
        {"components/lora/a.py": "from components.lora import b", "components/lora/b.py": "import components.lora.a"},
        "a circle of files: components/lora/a.py → components/lora/b.py → components/lora/a.py",
    ),
    "a circle of folders": (
        {"components/lora/a.py": "import components.base.b", "components/base/c.py": "import components.lora.d"},
        "a circle of folders: components/base → components/lora → components/base",
    ),
    "a type's circle": (
        {
            "flows/chain/a.py": "if TYPE_CHECKING:\n    from flows.chain.b import B",
            "flows/chain/b.py": "from flows.chain import a",
        },
        "a circle of files: flows/chain/a.py → flows/chain/b.py → flows/chain/a.py",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "said"), BROKEN.values(), ids=BROKEN)
def test_what_breaks_a_rule_is_named(files: dict[str, str], said: str):
    names = ("stages/b", "motion/b", "files/b", "base/b", "lora/d")
    known = {f"components/{name}.py": "" for name in names}
    known |= {"data_prep/cache/cache.py": "", "evaluation/report/report.py": "", "flows/cli/main.py": ""}
    assert broken_rules(known) == []
    lines = broken_rules(known | files)
    assert [line for line in lines if said in line], lines


@pytest.mark.parametrize("path", [path for path in FILES if path.endswith("__init__.py")])
def test_a_folder_says_in_one_sentence_what_lives_there(path: str):
    body = ast.parse(FILES[path]).body
    sentence = ast.get_docstring(ast.Module(body, []))
    assert len(body) == 1, "nothing but the docstring"
    assert sentence
    assert sentence.endswith(".")
    assert sentence.count(". ") == 0


@pytest.mark.parametrize("folder", [unit for unit in sorted(FOLDERS) if not unit.endswith(".py")])
def test_a_folder_names_what_it_imports_of_its_room(folder: str):
    said = " ".join(FILES[f"{folder}/__init__.py"].split()).partition("; imports ")[2]
    assert said
    room = room_of(folder)
    names = {name.removeprefix(f"{room}/") for name in FOLDERS[folder] if room_of(name) == room}
    if "everything in" in said or "the folders below" in said:
        return
    if "the files of infra" in said:
        names = {name for name in names if not name.endswith(".py")}
    assert {name for name in names if not re.search(rf"\b{name.removesuffix('.py')}\b", said)} == set()


def test_no_folder_is_too_full_and_no_file_too_long():
    counts = Counter(path.rpartition("/")[0] for path in FILES if not path.endswith("__init__.py"))
    assert {folder: count for folder, count in counts.items() if count > FILES_MAX} == {}
    assert {path: text.count("\n") for path, text in FILES.items() if text.count("\n") > LINES_MAX} == {}


def test_nothing_is_imported_from_where_it_was_only_imported():
    defined = {path: names_defined(source) for path, source in FILES.items()}
    modules = {path.removesuffix(".py").replace("/", "."): path for path in FILES}
    taken = []
    for path, source in FILES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (home := modules.get(str(node.module))):
                taken += [
                    f"{path}: {node.module}.{alias.name}" for alias in node.names if alias.name not in defined[home]
                ]
    assert taken == []


def names_defined(source: str) -> set[str]:
    """Names that a file gives itself, at its top level and under `if`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_imports_inside_functions_are_seen():
    graph = imports_of_files({"infra/a.py": "def f():\n    from infra.b import x", "infra/b.py": "x = 1"})
    assert graph == {"infra/a.py": {"infra/b.py"}, "infra/b.py": set()}
