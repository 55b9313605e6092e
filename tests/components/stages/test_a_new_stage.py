"""A fourth stage in one file: the image model's output layer learns stills, all else frozen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.base.model import BaseModel
from components.stages.plan import plan
from components.stages.stage import Model, Stage, train_stage
from components.train.config import TrainConfig
from infra.errors import UserError
from tests.components.conftest import CACHE_INPUT, DrawnClips

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SHORT = TrainConfig(steps=2, batch_size=2, learning_rate=1e-2, held_out_clips=0, sample_every_steps=0, device="cpu")
FILE = "output_layer.safetensors"


class OutputLayerTraining(Stage):
    """The whole of a stage."""

    kind = "output-layer"
    title = "output layer"
    clips = False
    optional = ("domain_adapter",)

    def load(self, pipeline: StableDiffusionPipeline, weights: Mapping[str, Path]) -> Model:
        return Model(pipeline.unet, {"layer": "conv_out"})

    def set_trainable(self, unet: nn.Module) -> dict[str, nn.Parameter]:
        unet.requires_grad_(False)
        layer = unet.get_submodule("conv_out").requires_grad_(True)
        return dict(layer.named_parameters())

    def save(self, folder: Path, model: Model, weights: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
        save_file(dict(weights), folder / FILE, metadata={name: str(value) for name, value in metadata.items()})


def test_it_trains_to_its_end_and_is_sealed(
    base: BaseModel, clips: DrawnClips, trained: dict[str, Path], pipeline: Any, tmp_path: Path
) -> None:
    stage, given = OutputLayerTraining(train=SHORT), {"domain_adapter": trained["domain-adapter"]}
    made = train_stage(stage, base, clips, CACHE_INPUT, tmp_path / "out", given)
    assert (made.kind, made.counts["steps"]) == ("output-layer", 2)
    assert set(made.record["inputs"]) == {"base", "cache", "domain_adapter"}
    weights, before = load_file(made.folder / FILE), dict(pipeline.unet.conv_out.named_parameters())
    assert weights.keys() == before.keys()
    assert not any(torch.equal(weights[name], before[name]) for name in before)
    assert not (made.folder / "checkpoints").exists()
    assert train_stage(stage, base, DrawnClips("unread"), CACHE_INPUT, tmp_path / "out", given) == made


def test_it_is_planned(base_folder: Path) -> None:
    found = plan(OutputLayerTraining(train=SHORT), base_folder, (8, 8), "l4")
    assert (found.stage, found.trained, found.samples) == ("output-layer", 4 * 32 * 9 + 4, 4)


def test_weights_that_a_stage_needs_must_be_given(base: BaseModel, clips: DrawnClips, tmp_path: Path) -> None:
    class OnAModule(OutputLayerTraining):
        required = ("motion_module",)

    with pytest.raises(UserError, match=r"No motion module is given\. The output layer is trained on a motion module"):
        train_stage(OnAModule(train=SHORT), base, clips, CACHE_INPUT, tmp_path / "out", {"motion_module": None})
    assert list(tmp_path.iterdir()) == []
