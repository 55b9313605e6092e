"""Encoding that runs out of memory: half as many frames at a time, down to one, then one message."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.encode.encode import Encoder, load_vae, vae_folder
from infra.errors import WorkError

SIZE = 32


@pytest.fixture
def limited(vae: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A VAE that has room for `frames` frames at a time, as a GPU would say it."""
    model = load_vae(vae_folder(vae), "cpu")
    encode, seen = model.encode, []

    def limit(frames: int) -> list[int]:
        def encode_if_there_is_room(pixels: torch.Tensor) -> Any:
            if len(pixels) > frames:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            seen.append(len(pixels))
            return encode(pixels)

        monkeypatch.setattr(model, "encode", encode_if_there_is_room)
        return seen

    return model, limit


def clips(*lengths: int) -> list[tuple[int, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [(k, generator.integers(0, 256, (frames, SIZE, SIZE, 3), np.uint8)) for k, frames in enumerate(lengths)]


def test_the_batch_is_halved_and_no_frame_is_lost(limited: Any, caplog: pytest.LogCaptureFixture):
    model, limit = limited
    given = clips(5, 3, 9)
    expected = {clip: latents.mean for clip, latents in Encoder(model, 8).stream(given)}
    seen = limit(2)
    with caplog.at_level(logging.WARNING, "animateflow"):
        found = {clip: latents.mean for clip, latents in Encoder(model, 8).stream(given)}
    assert list(found) == [0, 1, 2]
    for clip, frames in given:
        assert found[clip].shape == (len(frames), 4, *expected[clip].shape[2:])
        assert np.abs(found[clip].astype(float) - expected[clip]).max() < 2e-2
    assert max(seen) == 2
    lines = [record.getMessage() for record in caplog.records if "Out of memory" in record.getMessage()]
    assert [line.rsplit("now on ", 1)[1].split()[0] for line in lines] == ["4", "2"]


def test_a_single_frame_that_is_too_much_is_told(limited: Any):
    model, limit = limited
    limit(0)
    with pytest.raises(WorkError, match=r"Out of memory while encoding one frame of 32 pixels.*GiB are free") as caught:
        list(Encoder(model, 4).stream(clips(4)))
    assert "Finished shards are kept" in caught.value.meaning


def test_another_error_of_the_vae_is_not_taken_for_it(limited: Any, monkeypatch: pytest.MonkeyPatch):
    model, _ = limited

    def fail(pixels: torch.Tensor) -> None:
        raise RuntimeError("channels differ")

    monkeypatch.setattr(model, "encode", fail)
    with pytest.raises(RuntimeError, match="channels differ"):
        list(Encoder(model, 4).stream(clips(4)))
