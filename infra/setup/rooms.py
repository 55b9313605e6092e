"""The rooms of the project and their layers: who may import whom, declared once, and what is really imported.

`tests/test_imports.py` compares the two, docs/architecture.md shows the table, and `infra.setup.rooms_picture` draws
the imports.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

MAY_IMPORT = {
    "infra": (),
    "components": ("infra",),
    "data_prep": ("infra", "components"),
    "evaluation": ("infra", "components"),
    "flows": ("infra", "components", "data_prep", "evaluation"),
    "infra/gpu_check": ("infra", "components", "data_prep"),
}
"""Rooms, ground first, and the other rooms that each may import. `infra/gpu_check` is a program on top of them."""

LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "infra": (
        ("errors.py", "hashing.py", "logs.py", "memory.py", "quiet.py", "runtime.py", "seeds.py", "video.py"),
        ("config.py", "workers"),
        ("artifacts",),
        ("pocket", "setup"),
    ),
    "components": (
        ("files",),
        ("lora", "motion", "diffusion", "clip"),
        ("base",),
        ("convert", "train", "animate"),
        ("train/report",),
        ("train/loop",),
        ("stages",),
        ("bench",),
    ),
    "data_prep": (
        ("problems.py",),
        ("download", "sources", "filters"),
        ("config.py",),
        ("video", "cache"),
        ("checks", "encode"),
        ("builder", "look"),
        ("bench.py",),
    ),
    "evaluation": (("metrics", "registry"), ("results",), ("report",), ("benchmark",)),
    "flows": (
        ("recipes", "serving"),
        ("chain",),
        (
            "build_latent_cache.py",
            "train_domain_adapter.py",
            "train_motion_module.py",
            "train_motion_lora.py",
            "animate.py",
            "benchmark.py",
            "cli",
        ),
        ("pipeline.py",),
    ),
    "infra/gpu_check": (
        ("rows.py", "sizes.py", "needs.py", "machine.py"),
        ("context.py", "checks.py"),
        ("run.py", "parts"),
        ("__main__.py",),
    ),
}
"""Folders and files of each room, lowest layer first. One may import what stands in a lower layer of its room."""

ONLY_UNDER = {
    "prefect": ("flows/",),
    "ray": ("data_prep/", "infra/"),
    "typer": ("flows/",),
    "great_expectations": ("data_prep/",),
    "open_clip": ("components/clip/", "evaluation/", "infra/pocket/"),
}
"""Packages, and the only places that may import them."""

Graph = Mapping[str, set[str]]


def sources(root: Path = ROOT) -> dict[str, str]:
    """The text of every Python file of the rooms, by its path under the root."""
    paths = sorted({path for room in MAY_IMPORT for path in (root / room).rglob("*.py")})
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def imported(source: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every imported module and the names taken from it, imports inside functions and under TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module), tuple(alias.name for alias in node.names)


def imports_of_files(files: Mapping[str, str]) -> dict[str, set[str]]:
    """File → the files of the project that it imports."""
    by_module = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}
    graph: dict[str, set[str]] = {path: set() for path in files}
    for path, source in files.items():
        for module, names in imported(source):
            wanted = [f"{module}.{name}" for name in names if f"{module}.{name}" in by_module] or [module]
            graph[path] |= {by_module[name] for name in wanted if name in by_module} - {path}
    return graph


def imports_of_folders(graph: Graph) -> dict[str, set[str]]:
    """Folder (or file beside the folders of a room) → those that it imports, of this room or another."""
    folders: dict[str, set[str]] = {}
    for path, wanted in graph.items():
        own = unit_of(path)
        folders.setdefault(own, set()).update(unit for unit in map(unit_of, wanted) if unit != own)
    return folders


def room_of(path: str) -> str:
    """The innermost room that a file or folder lies in."""
    return max((room for room in MAY_IMPORT if f"{path}/".startswith(f"{room}/")), key=len)


def unit_of(path: str) -> str:
    """`components/train/loop/trainer.py` to `components/train/loop`, `infra/config.py` to itself."""
    folder = path.rpartition("/")[0]
    return path if folder in MAY_IMPORT else folder


def circle_in(graph: Graph) -> list[str]:
    """The names of one circle, its first name also last; empty where there is none."""
    done: set[str] = set()

    def look(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for wanted in sorted(graph.get(name, ())):
            if found := look(wanted, [*way, name]):
                return found
        done.add(name)
        return []

    for name in sorted(graph):
        if found := look(name, []):
            return found
    return []


def broken_rules(files: Mapping[str, str]) -> list[str]:
    """What the files import against the tables above, one line each; a circle is one line with its names."""
    graph = imports_of_files(files)
    lines = [line for path, source in files.items() for line in _misplaced_packages(path, source)]
    for path, wanted in sorted(graph.items()):
        lines += [line for other in sorted(wanted) if (line := _upward(path, other))]
    for what, edges in (("files", graph), ("folders", imports_of_folders(graph))):
        if circle := circle_in(edges):
            lines.append(f"a circle of {what}: {' → '.join(circle)}")
    return lines


def _misplaced_packages(path: str, source: str) -> Iterator[str]:
    for package in sorted({module.split(".")[0] for module, _ in imported(source)}):
        if package in ONLY_UNDER and not path.startswith(ONLY_UNDER[package]):
            yield f"{path} imports {package}, which belongs under {' and '.join(ONLY_UNDER[package])}"


def _upward(path: str, other: str) -> str | None:
    room, other_room = room_of(path), room_of(other)
    if room != other_room:
        return None if other_room in MAY_IMPORT[room] else f"{path} imports {other}: {room} may not import {other_room}"
    own, wanted = unit_of(path), unit_of(other)
    if own == wanted or other == f"{room}/__init__.py":
        return None
    layers = [layer_of(unit) for unit in (own, wanted)]
    if None in layers:
        missing = own if layers[0] is None else wanted
        return f"{missing} stands in no layer of {room} (infra/setup/rooms.py)"
    return None if layers[1] < layers[0] else f"{path} imports {other}, which stands no lower"  # type: ignore[operator]


def layer_of(unit: str) -> int | None:
    """The number of a folder's layer in its room, 0 the lowest; None where it is not declared."""
    room = room_of(unit)
    name = unit.removeprefix(f"{room}/")
    return next((number for number, layer in enumerate(LAYERS[room]) if name in layer), None)


def table() -> str:
    """The rooms and their layers as a table in Markdown, the highest first, for docs/architecture.md."""
    files = sources()
    rows = ["| layer | folder or file | what lives there | files |", "|---|---|---|---|"]
    for room in reversed(LAYERS):
        below = ", ".join(MAY_IMPORT[room]) or "no other room"
        packages = ", ".join(package for package, places in ONLY_UNDER.items() if f"{room}/" in places)
        alone = f"; has {packages}" if packages else ""
        rows.append(f"| | **`{room}/`** | **{what_lives_in(room, files)}** | *may import {below}{alone}* |")
        for number, layer in reversed(list(enumerate(LAYERS[room]))):
            for unit in (f"{room}/{name}" for name in layer):
                inside = [
                    path.rpartition("/")[2].removesuffix(".py") for path in files if unit_of(path) == unit != path
                ]
                names = ", ".join(name for name in inside if name != "__init__")
                rows.append(f"| {number} | `{unit}` | {what_lives_in(unit, files)} | {names} |")
    return "\n".join(rows)


def what_lives_in(unit: str, files: Mapping[str, str]) -> str:
    """The first sentence of a folder's or file's docstring, without what it imports."""
    docstring = ast.get_docstring(ast.parse(files.get(unit) or files[f"{unit}/__init__.py"])) or ""
    return " ".join(docstring.split()).partition("; ")[0].partition(". ")[0].rstrip(".:")
