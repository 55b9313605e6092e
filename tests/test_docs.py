"""What the documents name exists: files and folders, modules and calls, make targets, commands and their options."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from flows.cli.main import app
from flows.recipes.recipes import recipe_named
from infra.config import apply_overrides
from infra.setup.rooms import LAYERS, sources

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
RUN_MODULE = re.compile(r"python3? -m ([\w.]+)")
COMMAND = re.compile(r"(?:`|^ *)animateflow ([^`\n]+)", re.M)
SETTING = re.compile(r"--set ([\w.]+=[^\s`]+)")
CALL = re.compile(r"^( *)def (\w+)\((.*)\) ->|^class (\w+)", re.M)


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
        given = rf"^(?:def |class )?{attribute}\b"
        if not (file.is_file() and re.search(given, file.read_text(encoding="utf-8"), re.M)):
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


def test_modules_that_are_run_exist(document: Path):
    names = [name for name in RUN_MODULE.findall(document.read_text(encoding="utf-8")) if name.split(".")[0] in LAYERS]
    paths = [ROOT / name.replace(".", "/") for name in names]
    assert [path for path in paths if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file())] == []


def test_commands_and_their_options_exist(document: Path):
    assert list(wrong_commands(document.read_text(encoding="utf-8"))) == []


def wrong_commands(text: str) -> Iterator[str]:
    """`animateflow cache plan|build --source S`: each of the commands exists, and each has the option."""
    for line in COMMAND.findall(re.sub(r"\\\n", " ", text)):
        words = re.sub(r" \| ", "|", line.partition("#")[0]).split()
        commands = [typer.main.get_command(app)]
        while words and all(isinstance(command, TyperGroup) for command in commands) and not words[0].startswith("-"):
            names = words.pop(0).split("|")
            commands = [
                command.commands[name]
                for command in commands
                if isinstance(command, TyperGroup)
                for name in names
                if name in command.commands
            ]
            if len(commands) < len(names):
                yield line
        options = {option for command in commands for parameter in command.params for option in parameter.opts}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        if given - options - {"--help"}:
            yield line


def test_settings_exist(document: Path):
    for setting in SETTING.findall(document.read_text(encoding="utf-8")):
        apply_overrides(recipe_named("sd15"), [setting])


def test_the_tree_in_the_readme_is_the_real_one():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What is where")[2]
    for room in (room for room in LAYERS if "/" not in room):
        line = re.search(rf"^ +{room}/ +(.*(?:\n {{10,}}.*)*)", tree, re.M)
        assert line, room
        folders = {path.parent.name for path in (ROOT / room).glob("*/__init__.py")}
        assert set(re.findall(r"\b(\w+)/", line[1])) == folders


def test_documented_calls_are_those_of_the_code():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert list(wrong_calls("\n".join(re.findall(r"```python\n(.*?)```", page, re.S)))) == []


def wrong_calls(text: str) -> Iterator[str]:
    """Functions and classes that do not exist, and functions with other parameters; `…` stands for further ones."""
    real: dict[str, list[list[str]]] = {}
    for name, parameters in parameters_of_all():
        real.setdefault(name, []).append(parameters)
    within = ""
    for indent, function, written, named_class in CALL.findall(text):
        within = named_class or (within if indent else "")
        name = named_class or f"{within}.{function}".lstrip(".")
        parameters = re.findall(r"(?:^|, )(\w+|…)", re.sub(r"\[.*?\]|\{.*?\}", "", written))
        wanted = [parameter for parameter in parameters if parameter != "…"]
        found = [one[: len(wanted)] if "…" in parameters or named_class else one for one in real.get(name, [])]
        if wanted not in found:
            yield f"{name}({', '.join(parameters)})"


def parameters_of_all() -> Iterator[tuple[str, list[str]]]:
    """`function`, `Class` and `Class.method` of every file, with the names of their parameters."""
    for source in sources().values():
        tree = ast.parse(source)
        scopes = [("", tree), *((f"{node.name}.", node) for node in tree.body if isinstance(node, ast.ClassDef))]
        yield from ((name[:-1], []) for name, _ in scopes[1:])
        for scope, node in scopes:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.FunctionDef):
                    arguments = [*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs]
                    yield f"{scope}{child.name}", [argument.arg for argument in arguments]


def test_what_does_not_exist_is_seen():
    text = "See `components/no/such.py`, docs/log.md, `components.train.no_such` and `infra.config.NoSuch`."
    assert list(missing_paths(text)) == ["components/no/such.py"]
    assert list(missing_names(text)) == ["components.train.no_such", "infra.config.NoSuch"]
    text = (
        "`animateflow cache make`, `animateflow cache plan|build --source S --no-such`, `animateflow train motion-lora`"
    )
    assert list(wrong_commands(text)) == ["cache make", "cache plan|build --source S --no-such"]
    text = "def quiet_environment(loud) -> None\nclass NoSuch\nclass Artifact:\n    def as_input(self) -> Input"
    assert list(wrong_calls(text)) == ["quiet_environment(loud)", "NoSuch()"]


def test_the_documents_are_all_here():
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(tracked.split()) == set(DOCUMENTS)
