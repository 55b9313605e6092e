"""Where videos and captions come from: a WebVid CSV, a JSONL or Parquet table, a folder, or WebDataset tars.

Each may lie on this machine or at an fsspec address, and so may the folder of videos. Every row becomes a `SourceRow`,
also one that cannot be used: its `problem` says why. Files are located here and never opened, and none outside the
given folder is even looked at.
"""

from __future__ import annotations

import glob
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.files import VideoFile, explained, filesystem, is_remote, local_copy
from data_prep.problems import Problem
from data_prep.roots import LocalRoot, Root, root_at
from data_prep.tables import TableRow, read_csv_rows, read_jsonl_rows, read_parquet_rows
from data_prep.webdataset import parse_caption, read_samples, refuse_compressed
from infra.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".gif")
WEBVID_COLUMNS = ("videoid", "contentUrl", "duration", "page_dir", "name")
TABLES = (".csv", ".jsonl", ".ndjson", ".parquet", ".pq")
KINDS = (
    "A source is a WebVid .csv, a .jsonl or .parquet with `video` and `caption`, a folder of videos, or WebDataset "
    ".tar files (one, or a pattern such as 'shards/*.tar')."
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
    address = str(source)
    suffix = Path(address).suffix.lower()
    refuse_compressed(address)
    if videos is not None and not is_remote(videos) and not Path(videos).is_dir():
        what = "is not a folder" if Path(videos).exists() else "does not exist"
        raise UserError(
            f"The folder of videos {videos} {what}.", "A table's rows refer to files in it.", "Check --videos."
        )
    if suffix == ".tar":
        rows = [row for tar in _tars(address) for row in _from_tar(tar)]
    elif suffix in TABLES:
        rows = list(_from_table(address, suffix, root_at(videos_root(source, videos))))
    elif is_remote(address) or Path(address).is_dir():
        rows = list(_from_folder(root_at(address)))
    elif not Path(address).exists():
        raise UserError(f"The source {address} does not exist.", KINDS, "Check the path after --source.")
    else:
        raise UserError(
            f"The source {address} is of no known kind ({suffix or 'no suffix'}).", KINDS, "Name one of these."
        )
    if not rows:
        what = "not one row" if suffix in (*TABLES, ".tar") else f"no video ({' '.join(VIDEO_SUFFIXES)})"
        raise UserError(f"The source {address} holds {what}.", "There is nothing to encode.", "Check --source.")
    return rows


def videos_root(source: str | Path, videos: str | Path | None) -> str:
    """The folder, or its address, that `SourceRow.source` is relative to; of tars, the folder that they are in."""
    address = str(source)
    suffix = Path(address).suffix.lower()
    if suffix not in (*TABLES, ".tar"):
        return _absolute(address)
    if videos is not None and suffix != ".tar":
        return _absolute(str(videos))
    beside = posixpath.dirname(address) if is_remote(address) else str(Path(address).parent)
    if suffix == ".csv" and not is_remote(address) and (Path(beside) / "videos").is_dir():
        return _absolute(str(Path(beside) / "videos"))
    return _absolute(beside)


def find_video(root: str, source: str) -> VideoFile | None:
    """The video that a row of a cache names, where it is still there."""
    tar, colon, key = source.rpartition(".tar/")
    if colon:
        address = posixpath.join(root, f"{tar}.tar")
        if not is_remote(address) and not Path(address).is_file():
            return None
        return next((sample.video for sample in read_samples(address, VIDEO_SUFFIXES) if sample.key == key), None)
    found = root_at(root).locate([source])
    return None if isinstance(found, Problem) else found[1]


def _absolute(address: str) -> str:
    return address if is_remote(address) else str(Path(address).resolve())


def _from_table(address: str, suffix: str, root: Root) -> Iterator[SourceRow]:
    if not is_remote(address) and not Path(address).is_file():
        raise UserError(f"The source {address} does not exist.", KINDS, "Check the path after --source.")
    with local_copy(address) as table:
        if suffix == ".csv":
            yield from _from_webvid(read_csv_rows(table, WEBVID_COLUMNS), root)
        elif suffix in (".parquet", ".pq"):
            yield from _from_rows(read_parquet_rows(table), root)
        else:
            yield from _from_rows(read_jsonl_rows(table), root)


def _from_webvid(rows: Iterator[TableRow], root: Root) -> Iterator[SourceRow]:
    for row in rows:
        if row.problem:
            yield _malformed(row)
            continue
        clip_id, page = row.values["videoid"].strip(), row.values["page_dir"].strip()
        candidates = [f"{page}/{clip_id}.mp4", f"{clip_id}.mp4"] if page else [f"{clip_id}.mp4"]
        url = row.values["contentUrl"].strip()
        found = root.locate(candidates)
        missing = isinstance(found, Problem) and found.reason == "missing_file" and url
        yield SourceRow(
            clip_id=clip_id,
            caption=row.values["name"].strip(),
            source=candidates[0] if isinstance(found, Problem) else found[0],
            file=None if isinstance(found, Problem) else found[1],
            problem=found if isinstance(found, Problem) else None,
            duration=row.values["duration"].strip(),
            url=url,
            target=root.target(candidates[0]) if missing and isinstance(root, LocalRoot) else None,
        )


def _from_rows(rows: Iterator[TableRow], root: Root) -> Iterator[SourceRow]:
    for row in rows:
        if row.problem:
            yield _malformed(row)
            continue
        given = row.values["video"].strip()
        yield _row(_id_of(given), row.values["caption"].strip(), given, root.locate([given]))


def _from_folder(root: Root) -> Iterator[SourceRow]:
    """Videos anywhere below the folder. The caption is in a .txt or .json beside the video, else its file name says it:
    `a_red_boat.mp4` is "a red boat"."""
    for given in root.names():
        if posixpath.splitext(given)[1].lower() not in VIDEO_SUFFIXES:
            continue
        caption, problem = _sidecar(root, given)
        row = _row(given, caption, given, root.locate([given]))
        yield row if row.problem or not problem else SourceRow(given, "", given, problem=problem)


def _sidecar(root: Root, video: str) -> tuple[str, Problem | None]:
    stem = posixpath.splitext(video)[0]
    for suffix in (".txt", ".json"):
        data = root.read(stem + suffix)
        if isinstance(data, Problem):
            return "", data
        if data is not None:
            return parse_caption(data, suffix, stem + suffix)
    return " ".join(posixpath.basename(stem).replace("_", " ").split()), None


def _tars(pattern: str) -> list[str]:
    """The tars that a path, an address or a pattern of one names."""
    if not glob.has_magic(pattern):
        return [pattern]
    if is_remote(pattern):
        system, path = filesystem(pattern)
        with explained(pattern):
            found = sorted(str(system.unstrip_protocol(name)) for name in system.glob(path))
    else:
        found = sorted(glob.glob(pattern))
    if not found:
        raise UserError(f"No file matches {pattern}.", KINDS, "Check --source.")
    return found


def _from_tar(address: str) -> Iterator[SourceRow]:
    """A clip's id is `{tar's name}/{key}`; its source is that with the suffix .tar."""
    if not is_remote(address) and not Path(address).is_file():
        raise UserError(f"The source {address} does not exist.", KINDS, "Check the path after --source.")
    name = posixpath.basename(address)
    for sample in read_samples(address, VIDEO_SUFFIXES):
        yield SourceRow(
            clip_id=f"{name.removesuffix('.tar')}/{sample.key}",
            caption=sample.caption,
            source=f"{name}/{sample.key}",
            file=None if sample.problem else sample.video,
            problem=sample.problem,
        )


def _row(clip_id: str, caption: str, given: str, found: tuple[str, VideoFile] | Problem) -> SourceRow:
    if isinstance(found, Problem):
        return SourceRow(clip_id, caption, given, problem=found)
    return SourceRow(clip_id, caption, given, found[1])


def _id_of(given: str) -> str:
    """A table's clip id is the path that it gives, in one spelling."""
    return Path(given).as_posix() if given else ""


def _malformed(row: TableRow) -> SourceRow:
    return SourceRow(row.first or f"line {row.line}", "", "", problem=Problem("malformed_row", row.problem))
