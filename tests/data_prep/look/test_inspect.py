"""The inspection page: one file, nothing fetched, strangers' words escaped."""

import re
from pathlib import Path

import numpy as np
import pytest

from data_prep.builder.build import build_latent_cache
from data_prep.config import CacheConfig
from data_prep.look.inspect import inspect_cache
from data_prep.look.pictures import histogram, psnr
from infra.artifacts.artifacts import Artifact
from infra.errors import UserError
from infra.video import write_mp4
from tests.data_prep.conftest import noise_frames

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected") / "footage"
    folder.mkdir()
    for name in ("one", "two"):
        write_mp4(folder / f"{name}.mp4", noise_frames(32, 64, 64, seed=len(name)), fps=16)
        (folder / f"{name}.txt").write_text(HOSTILE)
    (folder / "bad.mp4").write_text("x")
    return folder


@pytest.fixture(scope="module")
def cache(footage: Path, vae: Path) -> Artifact:
    return build_latent_cache(CacheConfig(size=32), footage, None, vae, footage.parent / "cache")


def test_the_page(cache: Artifact, footage: Path, vae: Path, tmp_path: Path):
    page = inspect_cache(cache.folder, vae, tmp_path / "pages" / "page.html")
    text = page.read_text(encoding="utf-8")
    assert "alert(&#34;x&#34;)" in text
    assert "<script" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert text.count('alt="source"') == 2
    assert text.count('alt="decoded latents"') == 2
    assert "not_a_video" in text
    (footage / "one.mp4").unlink()
    later = inspect_cache(cache.folder, vae, page).read_text(encoding="utf-8")
    assert later.count('alt="source"') == 1
    assert "not where it was" in later


def test_another_vae_is_refused(cache: Artifact, tmp_path: Path):
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="were encoded by the VAE"):
        inspect_cache(cache.folder, tmp_path / "other", tmp_path / "page.html")


def test_histogram_has_a_bar_for_each_value_and_survives_equal_ones():
    assert histogram([1.0, 2.0, 3.0]).count("<rect") == 3
    assert histogram([2.0, 2.0]).count("<rect") == 1


def test_psnr_against_its_formula():
    black, grey = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 51, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * np.log10(5))
    assert psnr(black, black) == float("inf")
