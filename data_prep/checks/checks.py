"""The great_expectations suites for a source table and a finished manifest; rows that fail become rejections.

great_expectations lets a null, a NaN and an empty table pass range checks, so each column has a not-null expectation
and numbers have both ends.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.cache.rows import Rejection
from data_prep.checks.data_docs import adopt
from data_prep.problems import UNREAD

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from data_prep.config import CacheConfig
    from data_prep.sources.sources import SourceRow

DURATION = r"^(?:P(?=.)(?:\d+D)?(?:T(?=.)(?:\d+H)?(?:\d+M)?(?:\d+(?:\.\d+)?S)?)?)?$"
WEB_ADDRESS = r"^(?:https?://\S+)?$"
CAPTION_CHARACTERS_MAX = 10_000
SOURCE_FPS_MAX = 1000.0
CHECKED_COLUMNS = (
    "clip_id", "caption", "source", "content_sha256", "source_fps", "source_frames", "fps", "motion", "latents_sha256"
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One expectation, and the reason and message of a row that fails it."""

    expectation: Any
    reason: str
    message: str
    """A sentence; `{value}` is the row's own."""

    @property
    def name(self) -> str:
        """Such as `expect_column_values_to_be_unique(clip_id)`."""
        column = getattr(self.expectation, "column", "")
        return f"{self.expectation.expectation_type}({column})"


def check_source(rows: list[SourceRow], docs: Path) -> dict[int, Rejection]:
    """The rows that fail, by their place in `rows`; of equal ids the first row passes.

    Writes the suite's Data Docs below `docs`.
    """
    import pandas as pd

    readable = [(place, row) for place, row in enumerate(rows) if not _unread(row)]
    frame = pd.DataFrame(
        {
            "row": [place for place, _ in readable],
            "clip_id": [row.clip_id for _, row in readable],
            "source": [row.source for _, row in readable],
            "caption": [row.caption for _, row in readable],
            "duration": [row.duration for _, row in readable],
            "url": [row.url for _, row in readable],
        }
    )
    return _rejections(frame, _source_checks(), "source", docs)


def check_manifest(manifest: pa.Table, config: CacheConfig, docs: Path) -> dict[int, Rejection]:
    """The cached rows (all columns but the latents) that fail, by their place in the manifest.

    Writes the suite's Data Docs below `docs`.
    """
    import pandas as pd

    frame = pd.DataFrame({name: manifest[name].to_pylist() for name in CHECKED_COLUMNS})
    frame["frames"] = [shape[0] if shape else None for shape in manifest["latents_shape"].to_pylist()]
    frame["row"] = range(len(frame))
    return _rejections(frame, _manifest_checks(config), "latent-cache", docs)


def _unread(row: SourceRow) -> bool:
    return row.problem is not None and row.problem.reason in UNREAD


def _source_checks() -> list[Check]:
    from great_expectations import expectations as gxe

    return [
        Check(gxe.ExpectColumnValuesToMatchRegex(column="clip_id", regex=r"\S"), "empty_id", "The row has no id."),
        Check(
            gxe.ExpectColumnValuesToBeUnique(column="clip_id"),
            "duplicate_id",
            "The id {value!r} was there before; the first row is kept.",
        ),
        Check(
            gxe.ExpectColumnValuesToMatchRegex(column="caption", regex=r"\S"), "empty_caption", "The caption is empty."
        ),
        Check(
            gxe.ExpectColumnValueLengthsToBeBetween(column="caption", max_value=CAPTION_CHARACTERS_MAX),
            "caption_too_long",
            f"The caption has more than {CAPTION_CHARACTERS_MAX} characters.",
        ),
        Check(
            gxe.ExpectColumnValuesToMatchRegex(column="duration", regex=DURATION),
            "bad_duration",
            "The duration {value!r} cannot be read; it is written like PT00H00M17S.",
        ),
        Check(
            gxe.ExpectColumnValuesToMatchRegex(column="url", regex=WEB_ADDRESS),
            "bad_url",
            "The contentUrl {value!r} is no web address (http or https); it was not opened.",
        ),
        *(
            Check(gxe.ExpectColumnValuesToNotBeNull(column=name), f"null_{name}", f"The row has no {name}.")
            for name in ("clip_id", "caption", "duration", "url")
        ),
        Check(gxe.ExpectTableRowCountToBeBetween(min_value=1), "empty_table", "The table is empty."),
    ]


def _manifest_checks(config: CacheConfig) -> list[Check]:
    from great_expectations import expectations as gxe

    ranges: dict[str, tuple[float, float]] = {
        "frames": (config.frames_min, config.frames_max),
        "fps": (1e-3, SOURCE_FPS_MAX),
        "source_fps": (0.0, SOURCE_FPS_MAX),
        "source_frames": (1, 10_000_000),
        "motion": (0.0, 255.0),
    }
    names = ("clip_id", "caption", "source", "content_sha256", "latents_sha256", *ranges)
    return [
        Check(gxe.ExpectColumnValuesToBeUnique(column="clip_id"), "duplicate_id", "The id {value!r} is there twice."),
        *(
            Check(gxe.ExpectColumnValuesToNotBeNull(column=name), f"null_{name}", f"The clip has no {name}.")
            for name in names
        ),
        *(
            Check(
                gxe.ExpectColumnValuesToBeBetween(column=name, min_value=low, max_value=high),
                f"{name}_out_of_range",
                f"Its {name} is {{value}}, outside {low:g} to {high:g}.",
            )
            for name, (low, high) in ranges.items()
        ),
        Check(gxe.ExpectTableRowCountToBeBetween(min_value=1), "empty_table", "The cache has no clip."),
    ]


def _rejections(frame: pd.DataFrame, checks: list[Check], title: str, docs: Path) -> dict[int, Rejection]:
    results = _run(frame, checks, title, docs)
    rows = frame.set_index("row")
    found: dict[int, Rejection] = {}
    for check, failed in zip(checks, results, strict=True):
        seen: set[Any] = set()
        for place, value in failed:
            if check.reason == "duplicate_id" and value not in seen:  # every copy is listed; the first one stays
                seen.add(value)
                continue
            message = f"{check.message.format(value=value)} [{check.name}]"
            clip_id, source = str(rows.at[place, "clip_id"]), str(rows.at[place, "source"])
            found.setdefault(place, Rejection(clip_id, source, "check", check.reason, message))
    return found


def _run(frame: pd.DataFrame, checks: list[Check], title: str, docs: Path) -> list[list[tuple[int, Any]]]:
    """For each check the failing rows: place (column `row`) and value, in order."""
    import great_expectations as gx

    site = docs.absolute() / f".{title}"
    shutil.rmtree(site, ignore_errors=True)  # of a run that was stopped
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    batch = context.data_sources.add_pandas("rows").add_dataframe_asset(title)
    whole = batch.add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(name=title))
    for check in checks:
        suite.add_expectation(check.expectation)
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=title, data=whole, suite=suite))
    context.add_data_docs_site(
        site_name=title,
        site_config={
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(site),
            },
        },
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=title,
            validation_definitions=[definition],
            actions=[gx.checkpoint.UpdateDataDocsAction(name="docs", site_names=[title])],
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["row"]},
        )
    )
    (outcome,) = checkpoint.run(batch_parameters={"dataframe": frame}).run_results.values()
    adopt(site, title, docs)
    by_name = {_key(result.expectation_config): result for result in outcome.results}
    return [list(_failed(by_name[_key(check.expectation.configuration)])) for check in checks]


def _key(configuration: Any) -> tuple[str, str]:
    return configuration.type, str(configuration.kwargs.get("column", ""))


def _failed(result: Any) -> Iterable[tuple[int, Any]]:
    if _raised(result.exception_info or {}):
        raise AssertionError(f"great_expectations could not check a column: {result.exception_info}")
    column = result.expectation_config.kwargs.get("column")
    for entry in result.result.get("unexpected_index_list") or []:
        value = entry.get(column)
        place = entry["row"]
        yield int(place), None if isinstance(value, float) and math.isnan(value) else value


def _raised(information: Mapping[str, Any]) -> bool:
    """One exception, or one for each metric, by the metric's name."""
    return bool(information.get("raised_exception")) or any(
        _raised(nested) for nested in information.values() if isinstance(nested, Mapping)
    )
