"""CLIP scores against a second implementation: plain loops, and preprocessing written out."""

from __future__ import annotations

import itertools
import logging
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.clip.clip import ClipEncoder
from components.clip.config import ClipModel
from evaluation.metrics.clip_scores import score_clip
from infra.errors import UserError


@pytest.fixture(scope="module")
def encoder(clip_folder: Path) -> ClipEncoder:
    return ClipEncoder(ClipModel(name=f"local-dir:{clip_folder}"), "cpu")


def pictures(count: int, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(a * a)) / math.sqrt(sum(b * b)))


def test_scores_equal_the_formulas():
    rng = np.random.default_rng(1)
    raw = rng.normal(size=(5, 8)), rng.normal(size=8), rng.normal(size=(3, 8))
    frames, text, references = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in raw)
    got = score_clip(frames, text, references)
    f, r = raw[0], raw[2]
    assert got.text_alignment == pytest.approx(100 * np.mean([cosine(x, raw[1]) for x in f]))
    assert got.text_alignment_frames == pytest.approx([100 * cosine(x, raw[1]) for x in f])
    assert got.domain_similarity == pytest.approx(100 * np.mean([cosine(x, y) for x in f for y in r]))
    assert got.domain_similarity_max == pytest.approx(100 * np.mean([max(cosine(x, y) for y in r) for x in f]))
    assert got.smoothness_consecutive == pytest.approx(100 * np.mean([cosine(f[i], f[i + 1]) for i in range(4)]))
    assert got.smoothness_pairs == pytest.approx(100 * np.mean([cosine(x, y) for x, y in itertools.permutations(f, 2)]))
    assert got.reference_ceiling == pytest.approx(
        100 * np.mean([cosine(x, y) for x, y in itertools.permutations(r, 2)])
    )


def test_a_frozen_clip_is_perfectly_smooth(encoder: ClipEncoder):
    frozen = encoder.encode_images(np.repeat(pictures(1), 6, axis=0))
    got = score_clip(frozen, encoder.encode_text("a red square"), encoder.encode_images(pictures(2, seed=3)))
    assert got.smoothness_consecutive == pytest.approx(100, abs=1e-3)
    assert got.smoothness_pairs == pytest.approx(100, abs=1e-3)


def test_one_frame_has_no_smoothness_and_one_reference_no_ceiling(encoder: ClipEncoder):
    one = encoder.encode_images(pictures(1))
    got = score_clip(one, encoder.encode_text("x"), one)
    assert math.isnan(got.smoothness_consecutive)
    assert math.isnan(got.smoothness_pairs)
    assert math.isnan(got.reference_ceiling)
    assert got.domain_similarity == pytest.approx(100, abs=1e-3)


def test_frames_go_through_the_models_own_preprocessing(encoder: ClipEncoder):
    """Shorter side to 32 pixels (bicubic), centre crop, the folder's mean and deviation: written out here by hand."""
    frames = pictures(3, 48, 96)
    pixels = []
    for frame in frames:
        small = Image.fromarray(frame).resize((64, 32), Image.Resampling.BICUBIC).crop((16, 0, 48, 32))
        pixels.append((np.asarray(small, dtype=np.float32) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.3])
    batch = torch.tensor(np.stack(pixels), dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = encoder.model.encode_image(batch).numpy()
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_images(frames), expected, atol=2e-4)


def test_batches_do_not_change_embeddings(encoder: ClipEncoder, clip_folder: Path):
    frames = pictures(5)
    small = ClipEncoder(ClipModel(name=f"local-dir:{clip_folder}", batch_size=2), "cpu")
    np.testing.assert_allclose(small.encode_images(frames), encoder.encode_images(frames), atol=1e-5)


def test_text_is_normalised_and_its_truncation_noticed(encoder: ClipEncoder):
    assert np.linalg.norm(encoder.encode_text("a blue circle")) == pytest.approx(1, abs=1e-5)
    assert not encoder.truncates("a blue circle moving left on sand")
    assert encoder.truncates("a very long prompt " * 10)


def test_the_encoder_is_known_by_its_weights(encoder: ClipEncoder, clip_folder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    assert encoder.name == "tiny-clip"
    assert ClipEncoder(ClipModel(name=f"local-dir:{clip_folder}"), "cpu").sha256 == encoder.sha256
    other = tmp_path / "other"
    other.mkdir()
    (other / "open_clip_config.json").write_text((clip_folder / "open_clip_config.json").read_text())
    weights = load_file(clip_folder / "open_clip_model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, other / "open_clip_model.safetensors")
    changed = ClipModel(name=f"local-dir:{other}")
    assert ClipEncoder(changed, "cpu").sha256 != encoder.sha256
    assert changed.as_input().fingerprint != encoder.config.as_input().fingerprint


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (ClipModel(name="local-dir:/nowhere"), "/nowhere has no open_clip_config.json"),
        (ClipModel(name="ViT-B-33"), "ViT-B-32"),
        (ClipModel(name="ViT-B-32", pretrained="laion9b"), "It has openai"),
        (ClipModel(name="ViT-B-32", pretrained=None), "has no weights None"),
        (ClipModel(name="ViT-B-32", pretrained="openai"), "QuickGELU, and .*Set clip.name=ViT-B-32-quickgelu"),
        (ClipModel(name="ViT-L-14", pretrained="openai"), "Set clip.name=ViT-L-14-quickgelu"),
    ],
)
def test_what_cannot_be_loaded_is_said(model: ClipModel, says: str):
    with pytest.raises(UserError, match=says):
        ClipEncoder(model, "cpu")


def test_the_default_has_the_activation_its_weights_were_trained_with():
    import open_clip

    default = ClipModel()
    assert open_clip.get_model_config(default.name)["quick_gelu"] is True
    assert open_clip.get_pretrained_cfg(default.name, default.pretrained)["quick_gelu"] is True


def test_a_warning_of_open_clip_comes_through(clip_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    import open_clip

    load = open_clip.create_model_from_pretrained

    def warns(*given: object, **named: object):
        logging.info("a step")
        logging.warning("a mismatch")
        return load(*given, **named)

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", warns)
    with caplog.at_level(logging.INFO):
        ClipEncoder(ClipModel(name=f"local-dir:{clip_folder}"), "cpu")
    assert [record.message for record in caplog.records] == ["a mismatch"]


def test_a_folder_without_weights_is_no_random_model(clip_folder: Path, tmp_path: Path):
    (tmp_path / "open_clip_config.json").write_text((clip_folder / "open_clip_config.json").read_text())
    with pytest.raises(UserError, match="could not be loaded"):
        ClipEncoder(ClipModel(name=f"local-dir:{tmp_path}"), "cpu")


def test_without_network_a_name_fails_in_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    started = time.monotonic()
    with pytest.raises(UserError, match="local-dir:FOLDER"):
        ClipEncoder(ClipModel(name="ViT-L-14-336-quickgelu", pretrained="openai"), "cpu")
    assert time.monotonic() - started < 10
