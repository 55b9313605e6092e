"""The weights that ship: whole, small, and steered by the text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from infra.pocket.build import WEIGHTS, check_weights, write_checksums
from infra.pocket.image_model import stills, to_pixels, tokenize


def test_every_file_is_the_one_that_was_made(tmp_path: Path) -> None:
    check_weights()
    (tmp_path / "a.bin").write_bytes(b"one")
    write_checksums(tmp_path)
    check_weights(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"two")
    with pytest.raises(UserError, match=r"a\.bin"):
        check_weights(tmp_path)


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 30e6


@pytest.fixture(scope="module")
def clip():
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{WEIGHTS / 'clip'}")
    return model.eval()


@pytest.fixture(scope="module")
def base():
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(WEIGHTS / "base", dtype=torch.float32, safety_checker=None)


def test_open_clip_reads_its_own_tokenizer_as_transformers_does(clip, base) -> None:
    import open_clip

    caption = ["a red square moving left on grass"]
    theirs = open_clip.get_tokenizer(f"local-dir:{WEIGHTS / 'clip'}")(caption)
    assert torch.equal(theirs, tokenize(base.tokenizer, caption))


def test_the_judge_reads_drawn_stills(clip, base) -> None:
    from infra.pocket.clip_model import judge

    pictures, captions = stills(128, seed=999)
    right = judge(clip, base.tokenizer, to_pixels(pictures), captions)
    assert min(right.values()) > 0.9, right


def test_the_text_steers_the_still(clip, base) -> None:
    from infra.pocket.judge import judge_stills

    right = judge_stills(base, clip, count=48, seed=31)
    assert min(right.values()) > 0.7, right
