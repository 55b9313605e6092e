"""All checks in the order of their worth: what time is left for is done, and the rest is listed as not reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from infra.gpu_check.sizes import Sizes

STAGES = ("motion-module", "motion-lora", "domain-adapter")


@dataclass(frozen=True)
class Check:
    """`run` is `<file of parts>.<function>`, called with the arguments; `limit` its seconds at most, `needs` the least
    that it is begun with; with `if_short`, only where a row of whose words these are is short of its target."""

    part: str
    name: str
    run: str
    limit: float
    needs: float
    arguments: dict[str, Any] = field(default_factory=dict)
    if_short: str = ""


def checks(sizes: Sizes) -> list[Check]:
    return [*_correct(), *_fast(sizes), *_predicted(sizes), *_pocket()]


def _correct() -> list[Check]:
    return [
        Check("machine", "machine", "basics.machine", 60, 5),
        Check("correct", "motion module against the CPU", "correct.motion_module", 40, 10),
        *(Check("correct", f"{name} against the CPU", "correct.stage", 60, 15, {"name": name}) for name in STAGES),
        Check("correct", "resume", "correct.resume", 40, 10),
        *(
            Check("correct", f"temporal attention in parts, {kind}", "correct.attention", 30, 10, {"kind": kind})
            for kind in ("fp32", "bf16")
        ),
    ]


def _fast(sizes: Sizes) -> list[Check]:
    small, usual, large = sizes.clips
    return [
        Check("fast", "matmul rate", "basics.rates", 20, 5),
        _training("motion-module", usual),
        _official("motion-module", usual),
        _training("motion-module", large, target=True),
        Check(
            "profile", "a training step", "profiling.training", 60, 20, {"clips": large},
            if_short=f"motion-module B={large}: ours",
        ),
        Check("fast", "VAE encoding", "encoding.encoding", 40, 15),
        Check("profile", "VAE encoding", "profiling.encoding", 30, 15, if_short="VAE encoding"),
        Check("fast", "animation", "animating.ours", 60, 25),
        Check("fast", "animation, diffusers", "animating.stock", 60, 20),
        Check("profile", "a denoising step", "profiling.animating_step", 40, 20, if_short="animation: ours against"),
        _training("motion-module", sizes.clips_recomputed, checkpointing="full", limit=75),
        Check("correct", "compiled against eager", "correct.compiled", 90, 45),
        _training("motion-module", usual, compile=True, limit=150, needs=75),
        _official("motion-module", large),
        _training("motion-module", small),
        _official("motion-module", small),
        _training("motion-lora", usual),
        _official("motion-lora", usual),
        _training("domain-adapter", sizes.stills),
        _official("domain-adapter", sizes.stills),
        _training("motion-module", large, checkpointing="resnets"),
        _training("motion-module", large, checkpointing="full"),
        *(
            Check("fast", f"without {trick}", "training.without", 40, 15, {"trick": trick})
            for trick in ("cached latents", "cached text", "channels last", "bf16 frozen weights", "no waiting")
        ),
    ]  # fmt: skip


def _training(stage: str, clips: int, limit: float = 50, needs: float = 15, **settings: Any) -> Check:
    said = "".join(f", {name}" if value is True else f", {value} recomputed" for name, value in settings.items())
    arguments = {"stage": stage, "clips": clips, **settings}
    return Check("fast", f"{stage} B={clips}{said.replace(', target', '')}", "training.ours", limit, needs, arguments)


def _official(stage: str, clips: int) -> Check:
    arguments = {"stage": stage, "clips": clips}
    return Check("fast", f"{stage} B={clips}, the official step", "training.official", 50, 15, arguments)


def _predicted(sizes: Sizes) -> list[Check]:
    of_stage = {"motion-module": sizes.clips[1], "motion-lora": sizes.clips[1], "domain-adapter": sizes.stills}
    return [
        Check("predicted", "memory", "predicted.memory", 10, 2),
        *(
            Check("predicted", f"{stage} B={clips}", "predicted.seconds", 40, 12, {"stage": stage, "clips": clips})
            for stage, clips in of_stage.items()
        ),
    ]


def _pocket() -> list[Check]:
    return [
        Check("pocket", "VAE", "pocket.vae", 150, 40),
        Check("pocket", "base model", "pocket.base", 300, 60),
        Check("pocket", "CLIP", "pocket.clip", 120, 30),
        Check("pocket", "stills as prompted", "pocket.judged", 30, 5),
    ]
