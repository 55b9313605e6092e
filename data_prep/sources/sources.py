"""Where videos and captions come from: a WebVid CSV, a JSONL or Parquet table, a folder, or WebDataset tars.

Each may lie on this machine or at an fsspec address, and so may the folder of videos. Every row becomes a `SourceRow`,
also one that cannot be used: its `problem` says why. Files are located here and never opened, and none outside the
given folder is even looked at.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data_prep.problems import Problem, printable
from data_prep.sources.files import VideoFile, explained, filesystem, is_remote, local_copy, normal
from data_prep.sources.patterns import folder_of, matching
from data_prep.sources.roots import RemoteRoot, Root, root_at
from data_prep.sources.tables import TableRow, read_csv_rows, read_jsonl_rows, read_parquet_rows
from data_prep.sources.webdataset import parse_caption, read_samples, refuse_compressed
from infra.errors import UserError

VIDEO_SUFFIXES = (
    ".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".gif", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv",
    ".3gp", ".ogv",
)  # fmt: skip
WEBVID_COLUMNS = ("videoid", "contentUrl", "duration", "page_dir", "name")
TABLES = (".csv", ".jsonl", ".ndjson", ".parquet", ".pq")
TARS_AT_ONCE = 8  # at an address it is waiting for answers that takes the time
KINDS = (
    "A source is a WebVid .csv, a .jsonl or .parquet with `video` and `caption`, a folder of videos, or WebDataset "
    ".tar files (one, a folder of them, or a pattern such as 'shards/*.tar' or 'shards/{000..009}.tar')."
)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A video and its caption, as the source names them."""

    clip_id: str
    caption: str
    source: str
    """The path below `videos_root`: as given, or for WebVid as found."""
    file: VideoFile | None = None
    """Where the video lies; None where there is a problem."""
    problem: Problem | None = None
    duration: str = ""
    """As given (ISO 8601); empty where the source states none."""
    url: str = ""
    target: Path | None = None
    """Where a download of `url` would go; None where nothing is to be fetched."""


def read_source(source: str | Path, videos: str | Path | None) -> list[SourceRow]:
    """All rows of a source, in its order.

    `videos` is the folder that a table's rows refer to; left out, it is the table's own folder, for a WebVid CSV the
    folder `videos` in it where there is one. It is of no use with a folder or a tar.

    Raises:
        UserError: no such path, an unknown kind, a missing column, an empty table, no folder of videos.
    """
    address = normal(source)
    refuse_compressed(address)
    suffix = _suffix(address)
    what = "not one row"
    if suffix == ".tar":
        rows = _from_tars(folder_of(address), _tars(address))
    elif suffix in TABLES:
        rows = list(_from_table(address, suffix, root_at(_videos(address, videos))))
    elif os.path.isdir(address) or (is_remote(address) and suffix not in VIDEO_SUFFIXES):
        rows = _from_folder(root_at(address))
        what = f"no video ({' '.join(VIDEO_SUFFIXES)})"
    elif not is_remote(address) and not os.path.exists(address):
        raise UserError(f"The source {address} does not exist.", KINDS, "Check the path after --source.")
    else:
        raise UserError(
            f"The source {address} is of no known kind ({suffix or 'no suffix'}).", KINDS, "Name one of these."
        )
    if not rows:
        raise UserError(f"The source {address} holds {what}.", "There is nothing to encode.", "Check --source.")
    return rows


def videos_root(source: str | Path, videos: str | Path | None) -> str:
    """The folder, or its address, that `SourceRow.source` is relative to; of tars, the folder that they are below.

    Raises:
        UserError: the address cannot be reached.
    """
    address = normal(source)
    suffix = _suffix(address)
    if suffix == ".tar":
        return _absolute(folder_of(address))
    if suffix not in TABLES:
        return _absolute(address)
    if videos is not None:
        return _absolute(normal(videos))
    beside = posixpath.dirname(address)
    if suffix == ".csv" and _is_folder(below := posixpath.join(beside, "videos")):
        return _absolute(below)
    return _absolute(beside)


def find_video(root: str, source: str) -> VideoFile | None:
    """The video that a row of a cache names; None where it is gone or cannot be reached."""
    root = normal(root)
    tar, colon, key = source.rpartition(".tar/")
    try:
        if file := _locate_one(root, source):
            return file
        if not colon or (file := _locate_one(root, f"{tar}.tar")) is None:
            return None
        return next((sample.video for sample in read_samples(file.address, VIDEO_SUFFIXES) if sample.key == key), None)
    except UserError:
        return None


def _locate_one(root: str, relative: str) -> VideoFile | None:
    where = root_at(root)
    if isinstance(where, RemoteRoot):
        return where.locate_one(relative)
    found = where.locate([relative])
    return None if isinstance(found, Problem) else found[1]


def _suffix(address: str) -> str:
    """What says of which kind a source is; of a folder nothing does."""
    return "" if os.path.isdir(address) else posixpath.splitext(address)[1].lower()


def _absolute(address: str) -> str:
    return address if is_remote(address) else os.path.realpath(address)


def _is_folder(address: str) -> bool:
    if not is_remote(address):
        return os.path.isdir(address)
    system, path = filesystem(address)
    with explained(address):
        return bool(system.isdir(path))


def _videos(source: str, videos: str | Path | None) -> str:
    """The folder of videos of a table."""
    root = videos_root(source, videos)
    if videos is not None and not is_remote(root) and not os.path.isdir(root):
        what = "is not a folder" if os.path.exists(root) else "does not exist"
        raise UserError(
            f"The folder of videos {videos} {what}.", "A table's rows refer to files in it.", "Check --videos."
        )
    return root


def _from_table(address: str, suffix: str, root: Root) -> Iterator[SourceRow]:
    _require_file(address)
    with local_copy(address) as table:
        if suffix == ".csv":
            yield from _from_webvid(read_csv_rows(table, WEBVID_COLUMNS), root)
        elif suffix in (".parquet", ".pq"):
            yield from _from_rows(read_parquet_rows(table), root)
        else:
            yield from _from_rows(read_jsonl_rows(table), root)


def _require_file(address: str) -> None:
    if not is_remote(address) and not os.path.isfile(address):
        raise UserError(f"The source {address} does not exist.", KINDS, "Check the path after --source.")


def _from_webvid(rows: Iterable[TableRow], root: Root) -> Iterator[SourceRow]:
    for row in rows:
        if row.problem:
            yield _malformed(row)
            continue
        clip_id, page = row.values["videoid"].strip(), row.values["page_dir"].strip()
        candidates = [f"{page}/{clip_id}.mp4", f"{clip_id}.mp4"] if page else [f"{clip_id}.mp4"]
        url = row.values["contentUrl"].strip()
        found = root.locate(candidates)
        missing = isinstance(found, Problem) and found.reason == "missing_file"
        yield SourceRow(
            clip_id=clip_id,
            caption=row.values["name"].strip(),
            source=candidates[0] if isinstance(found, Problem) else found[0],
            file=None if isinstance(found, Problem) else found[1],
            problem=found if isinstance(found, Problem) else None,
            duration=row.values["duration"].strip(),
            url=url,
            target=root.target(candidates[0]) if missing and url and clip_id else None,
        )


def _from_rows(rows: Iterable[TableRow], root: Root) -> Iterator[SourceRow]:
    for row in rows:
        if row.problem:
            yield _malformed(row)
            continue
        given = row.values["video"].strip()
        yield _row(_id_of(given), row.values["caption"].strip(), given, root.locate([given]))


def _from_folder(root: Root) -> list[SourceRow]:
    """Videos anywhere below the folder, or WebDataset tars."""
    names = root.names()
    videos = [name for name in names if posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES]
    tars = [name for name in names if name.lower().endswith(".tar")]
    if videos and tars:
        raise UserError(
            f"{root.address} holds {len(videos)} videos and {len(tars)} tars.",
            "A source is the one or the other.",
            f"For the tars pass --source '{root.address}/*.tar'; for the videos move the tars away.",
        )
    if videos:
        return list(_from_videos(root, names, videos))
    for name in names:
        refuse_compressed(name)
    return _from_tars(root.address, tars)


def _from_videos(root: Root, names: list[str], videos: list[str]) -> Iterator[SourceRow]:
    """The caption is in a .txt or .json beside the video, else the file's name says it: `a_red_boat.mp4` is "a red
    boat"."""
    there = set(names)
    sidecars = {video: _sidecar(video, there) for video in videos}
    captions = {
        name: ("", Problem("bad_sidecar", data.message)) if isinstance(data, Problem) else parse_caption(data, name)
        for name, data in root.read(sorted(set(filter(None, sidecars.values()))))
    }
    for video in videos:
        shown = printable(video)
        caption, problem = captions.get(sidecars[video]) or (_spoken(video), None)
        if shown != video:
            row = _row(shown, caption, shown, Problem("bad_name", f"The name {shown} is not UTF-8 text."))
        else:
            row = _row(video, caption, video, root.locate([video]))
        yield row if row.problem or not problem else replace(row, caption="", file=None, problem=problem)


def _sidecar(video: str, names: set[str]) -> str:
    stem = posixpath.splitext(video)[0]
    return next((stem + suffix for suffix in (".txt", ".json") if stem + suffix in names), "")


def _spoken(video: str) -> str:
    stem = posixpath.splitext(posixpath.basename(video))[0]
    return " ".join(printable(stem).replace("_", " ").split())


def _tars(pattern: str) -> list[str]:
    names = matching(pattern)
    if not names:
        raise UserError(f"No file matches {pattern}.", KINDS, "Check --source.")
    for name in names:
        _require_file(posixpath.join(folder_of(pattern), name))
    return names


def _from_tars(folder: str, names: list[str]) -> list[SourceRow]:
    """A clip's id is `{the tar's path below the folder}/{key}`, without `.tar`; its source is that with it."""
    folder = folder if is_remote(folder) else os.path.abspath(folder)
    with ThreadPoolExecutor(TARS_AT_ONCE) as pool:
        rows = [row for some in pool.map(partial(_from_tar, folder), names) for row in some]
    if rows and all(row.problem and row.problem.reason == "broken_tar" for row in rows):
        assert rows[0].problem is not None, "just seen"
        raise UserError(rows[0].problem.message, "Not one sample could be read.", "Check --source.")
    return rows


def _from_tar(folder: str, name: str) -> list[SourceRow]:
    return [
        SourceRow(
            clip_id=f"{name.removesuffix('.tar')}/{sample.key}",
            caption=sample.caption,
            source=f"{name}/{sample.key}",
            file=None if sample.problem else sample.video,
            problem=sample.problem,
        )
        for sample in read_samples(posixpath.join(folder, name), VIDEO_SUFFIXES)
    ]


def _row(clip_id: str, caption: str, given: str, found: tuple[str, VideoFile] | Problem) -> SourceRow:
    if isinstance(found, Problem):
        return SourceRow(clip_id, caption, given, problem=found)
    return SourceRow(clip_id, caption, given, found[1])


def _id_of(given: str) -> str:
    """A table's clip id is the path that it gives, in one spelling."""
    return Path(given).as_posix() if given else ""


def _malformed(row: TableRow) -> SourceRow:
    return SourceRow(row.first or f"line {row.line}", "", "", problem=Problem("malformed_row", row.problem))
