"""Where videos and captions come from: a WebVid CSV, a JSONL or Parquet table, or a folder.

Every row becomes a `SourceRow`, also one that cannot be used: its `problem` says why. Files are located here and never
opened, and none outside the given folder is even looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.tables import TableRow, read_csv_rows, read_jsonl_rows, read_parquet_rows
from infra.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".gif")
WEBVID_COLUMNS = ("videoid", "contentUrl", "duration", "page_dir", "name")
KINDS = "A source is a WebVid .csv (with --videos), a .jsonl or .parquet with `video` and `caption`, or a folder."


@dataclass(frozen=True)
class Problem:
    """Why a row has no video: a code and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class SourceRow:
    """A video and its caption, as the source names them."""

    clip_id: str
    caption: str
    source: str
    """The path below `videos_folder`: as given, or for WebVid as found."""
    path: Path | None = None
    """Where the file lies, resolved; None where there is a problem."""
    problem: Problem | None = None
    duration: str = ""
    """As given (ISO 8601); empty where the source states none."""
    url: str = ""


def read_source(source: Path, videos: Path | None) -> list[SourceRow]:
    """All rows of a source, in its order.

    `videos` is the folder that a table's rows refer to: needed for a WebVid CSV, by default the table's own folder for
    JSONL and Parquet, and of no use with a folder.

    Raises:
        UserError: no such path, an unknown kind, a missing column, an empty table, no folder of videos.
    """
    if not source.exists():
        raise UserError(f"The source {source} does not exist.", KINDS, "Check the path after --source.")
    if videos is not None and not videos.is_dir():
        what = "is not a folder" if videos.exists() else "does not exist"
        raise UserError(
            f"The folder of videos {videos} {what}.", "A table's rows refer to files in it.", "Check --videos."
        )
    if source.is_dir():
        rows = list(_from_folder(source))
    elif source.suffix.lower() == ".csv":
        rows = list(_from_webvid(source, videos))
    elif source.suffix.lower() in (".jsonl", ".ndjson"):
        rows = list(_from_table(read_jsonl_rows(source), source, videos))
    elif source.suffix.lower() in (".parquet", ".pq"):
        rows = list(_from_table(read_parquet_rows(source), source, videos))
    else:
        raise UserError(
            f"The source {source} is of no known kind ({source.suffix or 'no suffix'}).", KINDS, "Name one of these."
        )
    if not rows:
        what = f"no video ({' '.join(VIDEO_SUFFIXES)})" if source.is_dir() else "not one row"
        raise UserError(f"The source {source} holds {what}.", "There is nothing to encode.", "Check --source.")
    return rows


def videos_folder(source: Path, videos: Path | None) -> Path:
    """The folder that a source's paths are relative to."""
    return source if source.is_dir() else videos if videos is not None else source.parent


def locate(root: Path, candidates: list[str]) -> Path | Problem:
    """The first candidate that is a file below `root`, symbolic links resolved; else what is wrong with them."""
    base = root.resolve()
    for relative in candidates:
        try:
            path = (base / relative).resolve()
            if not path.is_relative_to(base):
                return Problem("outside_folder", f"{relative!r} leads out of the folder {root}; it was not opened.")
            if path.is_file():
                return path
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
            return Problem("bad_path", f"{relative!r} cannot be a path: {error}.")
    return Problem("missing_file", f"There is no file {' or '.join(candidates)} in {root}.")


def _from_webvid(source: Path, videos: Path | None) -> Iterator[SourceRow]:
    rows = read_csv_rows(source, WEBVID_COLUMNS)
    if videos is None:
        raise UserError(
            f"{source} is a WebVid table and no folder of videos was named.",
            "Its rows refer to {videos}/{page_dir}/{videoid}.mp4 or {videos}/{videoid}.mp4.",
            "Pass that folder: --videos FOLDER.",
        )
    for row in rows:
        if row.problem:
            yield _malformed(row)
            continue
        clip_id, page = row.values["videoid"].strip(), row.values["page_dir"].strip()
        candidates = [f"{page}/{clip_id}.mp4", f"{clip_id}.mp4"] if page else [f"{clip_id}.mp4"]
        path, problem = _placed(locate(videos, candidates))
        yield SourceRow(
            clip_id=clip_id,
            caption=row.values["name"].strip(),
            source=candidates[0] if path is None else path.relative_to(videos.resolve()).as_posix(),
            path=path,
            problem=problem,
            duration=row.values["duration"].strip(),
            url=row.values["contentUrl"].strip(),
        )


def _from_table(rows: Iterator[TableRow], source: Path, videos: Path | None) -> Iterator[SourceRow]:
    root = videos_folder(source, videos)
    for row in rows:
        if row.problem:
            yield _malformed(row)
            continue
        given = row.values["video"].strip()
        path, problem = _placed(locate(root, [given]))
        yield SourceRow(_id_of(given), row.values["caption"].strip(), given, path, problem)


def _from_folder(folder: Path) -> Iterator[SourceRow]:
    """Videos anywhere below the folder. The caption is in a .txt or .json beside the video, else its file name says it:
    `a_red_boat.mp4` is "a red boat"."""
    for found in sorted(folder.rglob("*")):
        relative = found.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if found.suffix.lower() not in VIDEO_SUFFIXES or hidden or found.is_dir():
            continue
        given = relative.as_posix()
        path, problem = _placed(locate(folder, [given]))
        caption = _sidecar(folder, relative)
        if isinstance(caption, Problem):
            yield SourceRow(given, "", given, problem=problem or caption)
        else:
            yield SourceRow(given, caption, given, path, problem)


def _sidecar(folder: Path, video: Path) -> str | Problem:
    import json

    for suffix in (".txt", ".json"):
        beside = video.with_suffix(suffix)
        path = locate(folder, [beside.as_posix()])
        if isinstance(path, Problem):
            if path.reason != "missing_file":
                return path
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
            if suffix == ".txt":
                return " ".join(text.split())
            return str(json.loads(text)["caption"]).strip()
        except (ValueError, KeyError, TypeError) as error:
            return Problem(
                "bad_sidecar",
                f"{beside} beside the video cannot be read as "
                f"{'text' if suffix == '.txt' else 'JSON with a caption'}: {type(error).__name__}: {error}.",
            )
    return " ".join(video.stem.replace("_", " ").split())


def _id_of(given: str) -> str:
    """A table's clip id is the path that it gives, in one spelling."""
    return Path(given).as_posix() if given else ""


def _placed(found: Path | Problem) -> tuple[Path | None, Problem | None]:
    return (None, found) if isinstance(found, Problem) else (found, None)


def _malformed(row: TableRow) -> SourceRow:
    return SourceRow(row.first or f"line {row.line}", "", "", problem=Problem("malformed_row", row.problem))
