"""Several files in one name: `shards/*.tar`, `shards/{000..009}.tar`, `{a,b}/*.tar`; at a path or an address."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections.abc import Iterator

from data_prep.sources.files import explained, filesystem, is_remote

SIGNS = re.compile(r"[*?\[{]")
BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")


def folder_of(pattern: str) -> str:
    """The folder that all files of a pattern are below."""
    sign = None if os.path.exists(pattern) else SIGNS.search(pattern)
    return posixpath.dirname(pattern[: sign.start()] if sign else pattern)


def matching(pattern: str) -> list[str]:
    """The files of a pattern, by their paths below `folder_of` it: braces in their order, the rest sorted.

    Names in braces need not exist; a pattern without any sign is the one file that it names.

    Raises:
        UserError: the address cannot be listed.
    """
    folder = folder_of(pattern)
    below = pattern.removeprefix(folder).lstrip("/")
    if os.path.exists(pattern):
        return [below]
    return list(dict.fromkeys(name for one in braces(below) for name in _found(folder, one)))


def braces(text: str) -> Iterator[str]:
    """`a{1,2}` is a1, a2; `a{08..10}` is a08, a09, a10."""
    found = BRACES.search(text)
    if found is None:
        yield text
        return
    for inner in _alternatives(found[1]):
        yield from braces(text[: found.start()] + inner + text[found.end() :])


def _alternatives(inner: str) -> Iterator[str]:
    if "," in inner:
        yield from inner.split(",")
        return
    first, last = inner.split("..")
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    yield from (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))


def _found(folder: str, pattern: str) -> list[str]:
    if not glob.has_magic(pattern):
        return [pattern]
    if not is_remote(folder):
        return sorted(glob.glob(pattern, root_dir=folder or None, recursive=True))
    system, path = filesystem(folder)
    with explained(folder):
        return sorted(name.removeprefix(f"{path}/") for name in system.glob(f"{path}/{pattern}"))
