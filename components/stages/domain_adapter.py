"""Stage 1, the domain adapter: a LoRA on the image layers that takes up the look of the training videos (sec. 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor, nn

from components.lora import domain_adapter
from components.stages.models import start_lora
from components.stages.outputs import save_lora
from components.stages.stage import Model, Stage
from infra.config import execution

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class DomainAdapterTraining(Stage):
    """Stage 1: LoRA on the image layers, on single frames."""

    kind = domain_adapter.KIND
    title = "domain adapter"
    clips = False

    rank: int = Field(128, ge=1)
    """Rank of the LoRA; 128 is what the released v3 adapter implies."""
    init_from: Path | None = execution(None)
    """Domain adapter to start from; its content, not its path, is part of the identity."""

    def load(self, pipeline: StableDiffusionPipeline, weights: Mapping[str, Path]) -> Model:
        return Model(pipeline.unet)

    def set_trainable(self, unet: nn.Module) -> dict[str, nn.Parameter]:
        return domain_adapter.add_domain_adapter(unet, self.rank, self.train.seed)

    def initialise(self, trainable: Mapping[str, nn.Parameter], init_from: Path) -> None:
        start_lora(trainable, domain_adapter.load_domain_adapter(init_from), init_from)

    def save(self, folder: Path, model: Model, weights: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
        save_lora(folder, self.kind, domain_adapter.WEIGHTS_NAME, weights, metadata)
