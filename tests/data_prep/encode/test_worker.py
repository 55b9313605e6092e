"""Shards made by an actor's own code, in this process: batches across clips, what is kept of the posterior, filters,
and decoders that crash."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.clip.config import ClipModel
from data_prep.cache.shards import deal, overlap, read_state, shard_name
from data_prep.config import CacheConfig
from data_prep.encode.encode import Encoder, load_vae, text_folder, vae_folder
from data_prep.encode.tasks import ShardTask, VideoTask
from data_prep.encode.worker import ShardWorker, WorkerSettings
from data_prep.filters.filters import Filters
from data_prep.sources.files import VideoFile, local_stamp
from data_prep.video.child_process import Child
from data_prep.video.decode import prepare
from infra.errors import UserError
from infra.pocket.build import WEIGHTS
from tests.data_prep.conftest import Write, noise_frames
from tests.data_prep.video.child_functions import read_or_die

Work = Callable[..., tuple[dict[str, Any], Path]]
CONFIG = CacheConfig(size=32, frames_max=16, decode_seconds_max=30)


@pytest.fixture
def work(vae: Path, tmp_path: Path) -> Iterator[Work]:
    """Makes a shard of files in `tmp_path`; returns the summary and its path."""
    workers = []

    def make(
        config: CacheConfig,
        *names: str,
        old: list[Path] | None = None,
        shard: str = "shard-all-new.parquet",
        child: Any = None,
        base: Path = vae,
        text: bool = False,
    ) -> tuple[dict[str, Any], Path]:
        videos = [video(tmp_path / name) for name in names]
        worker = ShardWorker(WorkerSettings(config, vae_folder(base), text_folder(base) if text else None, "cpu", 1, 1))
        if child is not None:
            worker._children = [Child(child, prepare)]
        workers.append(worker)
        task = ShardTask(tmp_path / shard, videos, {"size": config.size}, old or [])
        summary = worker({"task": pickle.dumps(task)})
        assert "error" not in summary, pickle.loads(summary["error"])
        return summary, task.path

    yield make
    for worker in workers:
        worker.close()


def video(path: Path) -> VideoTask:
    file = VideoFile(str(path), local_stamp(path), suffix=path.suffix)
    return VideoTask(path.stem, f"about {path.stem}", path.name, file.stamp, file)


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in pq.read_table(path).to_pylist()}


def reasons(path: Path) -> dict[str, str]:
    return {row.clip_id: row.reason for state in read_state(path).videos.values() for row in state.rejections}


@pytest.fixture
def three(write_video: Write, clips: Path, tmp_path: Path) -> list[str]:
    """Three drawn clips as a.mp4, b.mp4, c.mp4."""
    names = ["a.mp4", "b.mp4", "c.mp4"]
    for name, drawn in zip(names, sorted(clips.parent.rglob("*.mp4")), strict=False):
        shutil.copy(drawn, tmp_path / name)
    return names


def test_a_decoder_that_crashes_or_hangs_costs_its_clip(work: Work, three: list[str], tmp_path: Path):
    for name in ("segfault.mp4", "hang.mp4"):
        shutil.copy(tmp_path / "a.mp4", tmp_path / name)
    config = CONFIG.replace(decode_seconds_max=0.4)
    summary, shard = work(config, "a.mp4", "segfault.mp4", "b.mp4", "hang.mp4", "c.mp4", child=read_or_die)
    assert reasons(shard) == {"segfault": "decoder_crashed", "hang": "decode_timeout"}
    assert sorted(rows_of(shard)) == ["a", "b", "c"]
    assert (summary["clips"], summary["encoded"]) == (3, 3)
    assert json.loads(summary["reasons"]) == ["decode_timeout", "decoder_crashed"]


def test_a_file_that_is_not_there_is_tried_again_by_the_next_run(three: list[str], tmp_path: Path):
    gone = tmp_path / "gone.mp4"
    shutil.copy(tmp_path / "a.mp4", gone)
    config = CONFIG.replace(encode_batch=4)

    task_video = video(gone)
    gone.unlink()
    assert task_video.file is not None
    worker = ShardWorker(WorkerSettings(config, vae_folder(WEIGHTS / "base"), None, "cpu", 1, 1))
    task = ShardTask(tmp_path / "shard-all-x.parquet", [task_video, video(tmp_path / "a.mp4")], {}, [])
    try:
        worker({"task": pickle.dumps(task)})
    finally:
        worker.close()
    assert not task.path.exists()
    assert reasons(task.path_incomplete) == {"gone": "unreadable"}
    assert list(rows_of(task.path_incomplete)) == ["a"]


def test_batches_run_across_clips_and_bits_do_not_depend_on_neighbours(vae: Path):
    frames = {place: noise_frames(count, 32, 32, seed=place) for place, count in enumerate((5, 1, 23, 3))}
    model = load_vae(vae_folder(vae), "cpu")
    encoder = Encoder(model, 8)
    together = dict(encoder.stream(iter(frames.items())))
    assert list(together) == [0, 1, 2, 3]
    for place, clip in frames.items():
        ((_, alone),) = encoder.stream([(place, clip)])
        assert together[place].mean.shape == (len(clip), 4, 8, 8)
        assert np.array_equal(together[place].mean, alone.mean)
    import torch

    with torch.inference_mode():
        pixels = torch.from_numpy(frames[2]).permute(0, 3, 1, 2).float() / 127.5 - 1
        wanted = model.encode(pixels).latent_dist
    assert np.abs(together[2].mean - wanted.mean.numpy()).max() < 2e-3 * float(wanted.mean.abs().max())
    ((_, moments),) = Encoder(model, 8, moments=True).stream([(0, frames[2])])
    assert moments.logvar is not None
    assert np.array_equal(moments.mean, together[2].mean)
    assert np.abs(moments.logvar - wanted.logvar.numpy()).max() < 2e-3 * float(wanted.logvar.abs().max())


def test_moments_and_captions(work: Work, three: list[str]):
    from transformers import CLIPTextModel, CLIPTokenizer

    config = CONFIG.replace(size=64, posterior="moments", caption_embeddings=True)
    _, shard = work(config, *three, base=WEIGHTS / "base", text=True)
    row = rows_of(shard)["b"]
    assert len(row["logvar"]) == len(row["latents"])
    assert np.frombuffer(row["logvar"], np.float16).max() < 10
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "base/tokenizer")
    model = CLIPTextModel.from_pretrained(WEIGHTS / "base/text_encoder").float()
    tokens = tokenizer(row["caption"], padding="max_length", return_tensors="pt").input_ids
    wanted = model(tokens)[0][0].detach().numpy()
    found = np.frombuffer(row["caption_embedding"], np.float16).reshape(row["caption_embedding_shape"])
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 5e-3 * np.abs(wanted).max()


def test_no_text_encoder(vae: Path):
    with pytest.raises(UserError, match="no text_encoder"):
        text_folder(vae)


def test_filters_reject_with_their_value_and_keep_it_as_a_column(work: Work, three: list[str], write_video: Write):
    still = np.repeat(noise_frames(1, 64, 64), 40, axis=0)
    write_video("still.mp4", still)
    write_video("dark.mp4", noise_frames(40, 64, 64) // 40)
    config = CONFIG.replace(filters=Filters(flow_min=0.001, brightness_min=20))
    _, shard = work(config, "a.mp4", "still.mp4", "dark.mp4")  # in b.mp4 all stands still
    assert reasons(shard) == {"still": "too_still", "dark": "too_dark"}
    values = [row.value for state in read_state(shard).videos.values() for row in state.rejections]
    assert all(value is not None for value in values)
    row = rows_of(shard)["a"]
    assert row["flow"] >= 0.001
    assert row["brightness"] >= 20
    assert row["phash"] is None


def test_another_threshold_costs_no_encoding(work: Work, three: list[str], write_video: Write):
    write_video("dark.mp4", noise_frames(40, 64, 64) // 8)
    strict = CONFIG.replace(filters=Filters(brightness_min=40))
    _, shard = work(strict, *three, "dark.mp4")
    assert reasons(shard) == {"dark": "too_dark"}
    light = {name: row["brightness"] for name, row in rows_of(shard).items()}
    middle = sorted(light.values())[1]
    again, stricter = work(
        CONFIG.replace(filters=Filters(brightness_min=middle)),
        *three,
        "dark.mp4",
        old=[shard],
        shard="shard-all-strict.parquet",
    )
    assert again["encoded"] == 0
    assert set(reasons(stricter)) == {"dark", min(light, key=lambda name: light[name])}
    lenient, loose = work(
        CONFIG.replace(filters=Filters(brightness_min=1)),
        *three,
        "dark.mp4",
        old=[shard],
        shard="shard-all-loose.parquet",
    )
    assert lenient["encoded"] == 1  # the dark one, which had no latents
    assert sorted(rows_of(loose)) == ["a", "b", "c", "dark"]


def test_videos_are_split_at_cuts(work: Work, write_video: Write):
    one, other = noise_frames(1, 64, 64, seed=1), noise_frames(1, 64, 64, seed=2) // 4
    write_video("cut.mp4", np.concatenate([np.repeat(one, 40, axis=0), np.repeat(other, 24, axis=0)]))
    write_video("whole.mp4", np.repeat(one, 40, axis=0))
    _, shard = work(CONFIG.replace(frames_min=8, filters=Filters(cuts="split")), "cut.mp4", "whole.mp4")
    rows = rows_of(shard)
    assert sorted(rows) == ["cut#000", "cut#001", "whole#000"]
    assert rows["cut#001"]["source_indices"][0] == 40
    assert rows["cut#000"]["source_indices"][-1] < 40
    assert {row["video_id"] for row in rows.values()} == {"cut", "whole"}
    _, rejecting = work(
        CONFIG.replace(filters=Filters(cuts="reject")), "cut.mp4", "whole.mp4", shard="shard-all-reject.parquet"
    )
    assert reasons(rejecting) == {"cut": "has_cuts"}
    _, short = work(
        CONFIG.replace(frames_min=16, filters=Filters(cuts="split")), "cut.mp4", shard="shard-all-short.parquet"
    )
    assert reasons(short) == {"cut#001": "too_short"}


def test_captions_that_do_not_fit(work: Work, clips: Path, tmp_path: Path):
    import csv

    with clips.open(newline="", encoding="utf-8") as handle:
        rows = {row["videoid"]: row["name"] for row in csv.DictReader(handle)}
    drawn = sorted(clips.parent.rglob("*.mp4"))[0]
    shutil.copy(drawn, tmp_path / "a.mp4")
    clip = ClipModel(name=f"local-dir:{WEIGHTS / 'clip'}")
    config = CONFIG.replace(size=64, filters=Filters(caption_match_min=-100, clip=clip))
    right, wrong = rows[drawn.stem], "a cup of tea"
    found = {}
    for caption in (right, wrong):
        worker = ShardWorker(WorkerSettings(config, vae_folder(WEIGHTS / "base"), None, "cpu", 1, 1))
        file = VideoFile(str(tmp_path / "a.mp4"), local_stamp(tmp_path / "a.mp4"))
        task = ShardTask(tmp_path / f"{len(found)}.parquet", [VideoTask("a", caption, "", "1:1", file)], {}, [])
        worker({"task": pickle.dumps(task)})
        worker.close()
        found[caption] = rows_of(task.path)["a"]["caption_match"]
    assert found[right] > found[wrong] + 10


def test_deal_puts_a_video_in_one_place_whatever_else_there_is():
    ids = [f"{place:06d}" for place in range(1000)]
    leaves = dict(deal([(one, one) for one in ids], 64))
    assert sorted(one for leaf in leaves.values() for one in leaf) == ids
    assert max(map(len, leaves.values())) <= 64
    assert list(leaves) == sorted(leaves)
    more = dict(deal([(one, one) for one in [*ids, "another"]], 64))
    changed = {bits for bits in {**leaves, **more} if leaves.get(bits) != more.get(bits)}
    assert len(changed) in (1, 3)  # one shard, or one that became two
    assert dict(deal([], 4)) == {}
    assert [bits for bits, _ in deal([("a", 1)], 4)] == [""]


@pytest.mark.parametrize(
    ("bits", "other", "meet"), [("", "0110", True), ("01", "0110", True), ("0110", "01", True), ("00", "01", False)]
)
def test_leaves_meet_where_one_holds_the_other(bits: str, other: str, meet: bool):
    assert overlap(shard_name(other, "f" * 64), bits) is meet
