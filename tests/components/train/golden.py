"""The first 20 losses of a fixed tiny recipe a stage: `python -m tests.components.train.golden` writes them anew.

A refactor leaves them as they are; whoever changes what is computed says so by committing other ones.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

from components.base.model import BaseModel, load_base, vae_sha256
from components.stages.domain_adapter import DomainAdapterTraining
from components.stages.motion_lora import MotionLoraTraining
from components.stages.motion_module import MotionModuleTraining
from components.stages.stage import train_stage
from components.train.config import TrainConfig
from components.train.report.log import StepReport
from tests.components.conftest import CACHE_INPUT, DrawnClips, random_pipeline

FILE = Path(__file__).with_name("golden_losses.json")
TRAIN = TrainConfig(
    steps=20, batch_size=2, frames=4, learning_rate=1e-3, warmup_steps=3, caption_dropout=0.3, held_out_clips=0,
    sample_every_steps=0, log_every_steps=1, device="cpu",
)  # fmt: skip
Losses = dict[str, list[float]]


def losses(folder: Path) -> Losses:
    """By stage; every stage builds on the one before it."""
    random_pipeline().save_pretrained(folder / "base", safe_serialization=True)
    base = BaseModel(path=folder / "base")
    clips = DrawnClips(vae_sha256(load_base(base).vae))
    found: Losses = {"domain-adapter": [], "motion-module": [], "motion-lora": []}

    def note(stage: str, report: StepReport) -> None:
        found[stage].append(report.loss)

    adapter, module, lora = (folder / stage for stage in found)
    train_stage(
        DomainAdapterTraining(train=TRAIN, rank=4), base, clips, CACHE_INPUT, adapter,
        on_step=partial(note, "domain-adapter"),
    )  # fmt: skip
    train_stage(
        MotionModuleTraining(train=TRAIN, preset="from-base"), base, clips, CACHE_INPUT, module,
        {"domain_adapter": adapter}, on_step=partial(note, "motion-module"),
    )  # fmt: skip
    train_stage(
        MotionLoraTraining(train=TRAIN, rank=4), base, clips, CACHE_INPUT, lora,
        {"motion_module": module, "domain_adapter": adapter}, on_step=partial(note, "motion-lora"),
    )  # fmt: skip
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        FILE.write_text(json.dumps(losses(Path(name)), indent=1) + "\n", encoding="utf-8")
