"""Models small enough to make for every run: random weights, real open_clip and diffusers code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.components.conftest import random_pipeline

CLIP_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in open_clip's format, for `local-dir:`."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.CLIP(**CLIP_CONFIG)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}
    config = {"model_cfg": CLIP_CONFIG, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of a random image model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    random_pipeline().save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def motion_modules(image_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A motion module for 8 frames, and one whose two positions are too few for any benchmark here."""
    from components.base.model import BaseModel, load_base
    from components.motion.files import save_motion_module
    from components.motion.module import MotionModuleConfig, fresh_motion_adapter

    unet = load_base(BaseModel(path=image_model)).unet
    folders = {}
    for name, frames in (("eight", 8), ("two", 2)):
        config = MotionModuleConfig(preset="from-base", max_frames=frames)
        folders[name] = tmp_path_factory.mktemp("modules") / name
        save_motion_module(folders[name], fresh_motion_adapter(config, unet), {"preset": config.preset})
    return folders
