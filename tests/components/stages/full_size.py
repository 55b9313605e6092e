"""One bf16 training step of one stage on a UNet of Stable Diffusion 1.5's size, on the CPU; prints one line of JSON.

    python -m tests.components.stages.full_size motion-module [--gradient-checkpointing]

Weights and text are random, the window is 64x64 pixels; model, stage and trainer are the project's own. A process
does one step, so that the peak memory it prints is that step's (Linux). The motion module's takes 11 GiB and seconds on
two idle cores; beside other busy processes its threads wait for each other, several times as long.

B clips, F frames, C channels, h w latents, L words, D their width.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from components.diffusion.objective import image_predictor, video_predictor
from components.motion.module import (
    MotionModuleConfig,
    fresh_motion_adapter,
    insert_motion_module,
    temporal_modules,
)
from components.stages.domain_adapter import DomainAdapterTraining
from components.stages.motion_lora import MotionLoraTraining
from components.stages.motion_module import MotionModuleTraining
from components.train.activation_checkpointing import Checkpointing
from components.train.config import TrainConfig
from components.train.loop.trainer import train
from components.train.step import Task
from infra.runtime import quiet_environment
from tests.components.conftest import DrawnClips

SD15_PARAMETERS = 859_520_964
FRAMES = 16
TEXT_LENGTH, TEXT_WIDTH = 77, 768
LATENT_SCALE, LATENTS = 0.18215, (8, 8)
GIB = 1 << 30


@dataclass(frozen=True)
class Stage:
    """How a stage's task is made, and which parameters are its own: told by their names in the UNet alone, and not by
    what the stage says is trainable."""

    build: Callable[[TrainConfig], Task]
    owns: Callable[[str], bool]
    moves_first: Callable[[str], bool]
    """Those with a gradient other than zero in the very first step.

    A fresh motion module's proj_out is zero and a fresh LoRA's up matrix is zero, so what stands before them has a
    gradient, which is exactly zero, until these have made their first step.
    """


def image_unet() -> Any:
    """A `UNet2DConditionModel` of SD 1.5's shape with random weights, float32 (3.2 GiB)."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=32,
    )
    assert sum(parameter.numel() for parameter in unet.parameters()) == SD15_PARAMETERS
    return unet


def video_unet() -> Any:
    """The same with a fresh v3 motion module (4.8 GiB); the image model and the adapter are let go of."""
    unet2d, module = image_unet(), MotionModuleConfig(preset="v3")
    return insert_motion_module(unet2d, fresh_motion_adapter(module, unet2d), module.group_norm, module.image_norm)


def domain_adapter(config: TrainConfig) -> Task:
    unet = image_unet()
    trainable = DomainAdapterTraining(train=config).set_trainable(unet)
    return Task("domain adapter", unet, image_predictor, trainable, drawn_text, LATENT_SCALE, 1, LATENTS)


def motion_module(config: TrainConfig) -> Task:
    unet = video_unet()
    trainable = MotionModuleTraining(train=config).set_trainable(
        unet
    )  # freezes the rest: the thing to be proved, so no copy of it
    return Task("motion module", unet, video_predictor, trainable, drawn_text, LATENT_SCALE, config.frames, LATENTS)


def motion_lora(config: TrainConfig) -> Task:
    unet = video_unet()
    for module in temporal_modules(unet).values():  # as after training; behind a zero proj_out no LoRA has a gradient
        nn.init.normal_(module.proj_out.weight, std=0.02)
    trainable = MotionLoraTraining(train=config).set_trainable(unet)
    return Task("MotionLoRA", unet, video_predictor, trainable, drawn_text, LATENT_SCALE, config.frames, LATENTS)


def drawn_text(captions: list[str]) -> Tensor:
    """(B, L, D) in the place of the text encoder's states."""
    return torch.randn(len(captions), TEXT_LENGTH, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))


def sees_one_token(name: str) -> bool:
    """64 px are 8x8 latents and one position in the middle of the UNet, where every softmax of spatial self-attention
    is 1 whatever queries and keys are."""
    return name.startswith("mid_block.attentions.") and (".attn1.to_q." in name or ".attn1.to_k." in name)


STAGES = {
    "domain-adapter": Stage(
        domain_adapter,
        owns=lambda name: ".attentions." in name and ".lora_" in name,
        moves_first=lambda name: ".lora_B." in name and not sees_one_token(name),
    ),
    "motion-module": Stage(
        motion_module,
        owns=lambda name: ".motion_modules." in name,
        moves_first=lambda name: ".proj_out." in name,
    ),
    "motion-lora": Stage(
        motion_lora,
        owns=lambda name: ".motion_modules." in name and ".lora_" in name,
        moves_first=lambda name: ".lora_B." in name,
    ),
}


@dataclass
class Step:
    """What was seen of one training step."""

    gradients: dict[str, float] = field(default_factory=dict)
    """Largest absolute gradient by parameter, of every parameter of the UNet that has one (NaN where one is)."""
    layer_dtypes: set[torch.dtype] = field(default_factory=set)
    """Of what the linear layers and convolutions gave out."""
    optimizer_steps: int = 0
    seconds: float = 0.0
    """From the UNet's call to the end of the optimizer's step."""


@contextmanager
def watched(unet: nn.Module) -> Iterator[Step]:
    """Looks on while a step is made: before and after the optimizer's part, and at each layer."""
    seen, started = Step(), 0.0

    def start(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal started
        started = time.monotonic()

    def note_dtype(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if output.device.type == "cpu":  # and not a copy without memory, on which FLOPs and bytes are counted
            seen.layer_dtypes.add(output.dtype)

    def note_gradients(*unused: Any) -> None:
        for name, parameter in unet.named_parameters():
            if parameter.grad is not None:
                low, high = parameter.grad.aminmax()
                seen.gradients[name] = torch.maximum(-low, high).item()

    def end(*unused: Any) -> None:
        seen.optimizer_steps += 1
        seen.seconds = time.monotonic() - started

    with ExitStack() as hooks:
        hooks.callback(unet.register_forward_pre_hook(start).remove)
        hooks.callback(register_optimizer_step_pre_hook(note_gradients).remove)
        hooks.callback(register_optimizer_step_post_hook(end).remove)
        for layer in unet.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                hooks.callback(layer.register_forward_hook(note_dtype).remove)
        yield seen


def checksums(unet: nn.Module) -> dict[str, int]:
    """CRC-32 of every parameter and buffer, without a copy."""
    return {name: zlib.crc32(tensor.detach().contiguous().numpy()) for name, tensor in unet.state_dict().items()}


def bytes_of(unet: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in unet.state_dict().values())


def peak_gib() -> float:
    """This process's largest resident memory since it began, or since `forget_peak`."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2)


def forget_peak() -> None:
    """The kernel counts on from what is resident now (proc(5), clear_refs), so that building does not hide the step."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def check(stage: Stage, task: Task, seen: Step, before: dict[str, int], after: dict[str, int]) -> None:
    """That the step was one of bf16, of the stage's own parameters, and of nothing else."""
    parameters = dict(task.unet.named_parameters())
    own = {name for name in parameters if stage.owns(name)}
    trainable = {id(parameter) for parameter in task.trainable.values()}
    assert own
    assert seen.optimizer_steps == 1
    assert seen.gradients.keys() == own
    assert all(math.isfinite(largest) for largest in seen.gradients.values())
    assert {name for name, parameter in parameters.items() if id(parameter) in trainable} == own
    assert {name for name, parameter in parameters.items() if parameter.requires_grad} == own
    assert {parameters[name].dtype for name in own} == {torch.float32}
    assert seen.layer_dtypes == {torch.bfloat16}

    first = {name for name in own if stage.moves_first(name)}
    assert first
    assert {name for name in first if seen.gradients[name] == 0} == set()

    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys()
    assert changed - own == set()
    assert first - changed == set()


def step_of(name: str, checkpointing: Checkpointing) -> dict[str, Any]:
    """Makes one step of a stage with the project's trainer and checks it; returns its figures."""
    stage = STAGES[name]
    config = TrainConfig(
        steps=1,
        batch_size=1,
        frames=FRAMES,
        precision="bf16",
        held_out_clips=0,
        activation_checkpointing=checkpointing,
        device="cpu",
    )
    task = stage.build(config)
    before, building = checksums(task.unet), peak_gib()
    forget_peak()
    with watched(task.unet) as seen, tempfile.TemporaryDirectory() as folder:
        result = train(config, task, DrawnClips("drawn"), Path(folder))
    training = peak_gib()
    check(stage, task, seen, before, checksums(task.unet))
    assert result.counts["skipped_steps"] == 0
    assert math.isfinite(result.metrics["loss"])
    return {
        "stage": name,
        "activation_checkpointing": checkpointing,
        "frames": task.frames,
        "trainable_parameters": result.counts["trainable_parameters"],
        "parameters": sum(parameter.numel() for parameter in task.unet.parameters()),
        "tensors_with_gradient": len(seen.gradients),
        "tensors_with_gradient_not_zero": sum(largest > 0 for largest in seen.gradients.values()),
        "step_seconds": round(seen.seconds, 1),
        "peak_gib": training,
        "peak_gib_of_building": building,
        "model_gib": round(bytes_of(task.unet) / GIB, 2),
        "loss": round(result.metrics["loss"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="One bf16 training step of one stage at full size, on the CPU.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--activation-checkpointing", choices=("none", "resnets", "full"), default="none")
    given = parser.parse_args()
    quiet_environment()
    print(json.dumps(step_of(given.stage, given.activation_checkpointing)))


if __name__ == "__main__":
    main()
