"""A random model of the pocket's shape, written as a diffusers folder, and clips drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from components.base.model import BaseModel, load_base, vae_sha256
from components.train.batch import ClipBatch
from infra.artifacts.artifacts import Input

if TYPE_CHECKING:
    from tests.components.files.fuzz_setup import Bench

pytest.register_assert_rewrite("tests.components.files.fuzz_setup", "tests.components.files.readers")

CAPTIONS = ["a red circle moving left", "a blue square", "a green triangle moving up", "a camera pans over a field"]
CACHE_INPUT = Input("latent-cache", "drawn", "0" * 64)


@dataclass
class DrawnClips:
    """A `BatchSource` whose n-th batch is a function of (seed, n)."""

    vae_sha256: str

    @property
    def latent_size(self) -> tuple[int, int]:
        return 8, 8

    def batches(
        self, batch_size: int, frames: int, seed: int, start_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[ClipBatch]:
        step, own = start_step, slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        while True:
            whole = self._batch(batch_size, frames, 1000 * seed + step)
            yield ClipBatch(whole.latents_BCFhw[own], whole.captions[own], whole.clip_ids[own])
            step += 1

    def held_out(self, count: int, frames: int) -> ClipBatch:
        return self._batch(count, frames, 10**9)

    def _batch(self, count: int, frames: int, seed: int) -> ClipBatch:
        generator = torch.Generator().manual_seed(seed % 2**63)
        latents = torch.randn(count, 4, frames, 8, 8, generator=generator)
        captions = [CAPTIONS[(seed + i) % len(CAPTIONS)] for i in range(count)]
        return ClipBatch(latents, captions, [str(i) for i in range(count)])


def pocket_unet_config() -> dict[str, Any]:
    return {
        "sample_size": 16,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": (32, 64, 96),
        "layers_per_block": 1,
        "cross_attention_dim": 128,
        "attention_head_dim": 4,
        "norm_num_groups": 16,
    }


def random_pipeline() -> Any:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from infra.pocket.image_model import TEXT_LENGTH, TEXT_WIDTH, build_tokenizer, scheduler

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=64,
        scaling_factor=0.5,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**pocket_unet_config()),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    random_pipeline().save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def base(base_folder: Path) -> BaseModel:
    return BaseModel(path=base_folder)


@pytest.fixture
def pipeline(base: BaseModel) -> Any:
    return load_base(base)


@pytest.fixture(scope="session")
def clips(base: BaseModel) -> DrawnClips:
    return DrawnClips(vae_sha256(load_base(base).vae))


@pytest.fixture(scope="session")
def bench(base: BaseModel, base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    from tests.components.files.fuzz_setup import Bench

    return Bench(load_base(base), base_folder, tmp_path_factory.mktemp("damaged"))


@pytest.fixture(scope="session")
def trained(base: BaseModel, clips: DrawnClips, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All three stages, two steps each, in the paper's order; large steps, so that every effect is visible."""
    from components.stages.domain_adapter import DomainAdapterTraining
    from components.stages.motion_lora import MotionLoraTraining
    from components.stages.motion_module import MotionModuleTraining
    from components.stages.stage import train_stage
    from components.train.config import TrainConfig

    root = tmp_path_factory.mktemp("trained")
    paths = {kind: root / kind for kind in ("domain-adapter", "motion-module", "motion-lora")}
    train = TrainConfig(steps=2, batch_size=2, frames=4, learning_rate=1e-2, held_out_clips=2, sample_every_steps=0)
    adapter = DomainAdapterTraining(train=train, rank=4)
    train_stage(adapter, base, clips, CACHE_INPUT, paths["domain-adapter"])
    module = MotionModuleTraining(train=train, preset="from-base")
    train_stage(module, base, clips, CACHE_INPUT, paths["motion-module"], {"domain_adapter": paths["domain-adapter"]})
    lora = MotionLoraTraining(train=train, rank=4)
    train_stage(lora, base, clips, CACHE_INPUT, paths["motion-lora"], {"motion_module": paths["motion-module"]})
    return paths
