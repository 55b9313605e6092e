from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.animation import AnimationConfig, AnimationModels, WeightedFile, animate
from components.animator import Animator
from components.base_model import BaseModel
from infra.errors import UserError
from infra.video import read_mp4

CONFIG = AnimationConfig(prompt="a red circle moving left", frames=4, steps=2, height=32, width=48)


@pytest.fixture(scope="module")
def models(base: BaseModel, trained: dict[str, Path]) -> AnimationModels:
    return AnimationModels(base=base, motion_module=trained["motion-module"])


@pytest.fixture(scope="module")
def animator(models: AnimationModels) -> Animator:
    return Animator(models, "cpu")


def test_the_same_seed_gives_the_same_frames_whatever_ran_before(animator: Animator) -> None:
    first = animator.frames(CONFIG)
    assert (first.shape, first.dtype) == ((4, 32, 48, 3), np.uint8)
    other = animator.frames(CONFIG.replace(seed=1, prompt="a blue square", frames=3))
    animator.images(CONFIG, 2)
    assert np.array_equal(animator.frames(CONFIG), first)
    assert not np.array_equal(other, first[:3])


def test_every_kind_of_weights_has_its_effect(animator: Animator, trained: dict[str, Path]) -> None:
    plain = animator.frames(CONFIG).astype(int)

    def changed(**given: object) -> bool:
        other = Animator(animator.models.model_copy(update=given), "cpu")
        return not np.array_equal(other.frames(CONFIG), plain)

    assert changed(motion_loras=(WeightedFile(path=trained["motion-lora"]),))
    assert changed(domain_adapter=WeightedFile(path=trained["domain-adapter"]))
    assert not changed(motion_loras=(WeightedFile(path=trained["motion-lora"], scale=0.0),))
    assert not changed(domain_adapter=WeightedFile(path=trained["domain-adapter"], scale=0.0))
    assert changed(motion_module=None)


def test_opposite_loras_cancel(animator: Animator, trained: dict[str, Path]) -> None:
    pair = (WeightedFile(path=trained["motion-lora"]), WeightedFile(path=trained["motion-lora"], scale=-1.0))
    both = Animator(animator.models.model_copy(update={"motion_loras": pair}), "cpu").frames(CONFIG)
    assert np.abs(both.astype(int) - animator.frames(CONFIG)).max() <= 1


def test_without_a_motion_module_frames_are_pictures_with_noise_of_their_own(base: BaseModel) -> None:
    animator = Animator(AnimationModels(base=base), "cpu")
    frames = animator.frames(CONFIG)
    assert not np.array_equal(frames[0], frames[1])
    assert (
        np.abs(animator.images(CONFIG, 2).astype(int) - frames[:2]).max() <= 1
    )  # picture i is a function of (seed, i)


def test_pictures_are_those_of_the_image_pipeline(base: BaseModel, animator: Animator) -> None:
    """The motion module must not leak into them."""
    assert np.array_equal(animator.images(CONFIG, 1), Animator(AnimationModels(base=base), "cpu").images(CONFIG, 1))


def test_an_animation_is_an_artifact(animator: Animator, trained: dict[str, Path], tmp_path: Path) -> None:
    made = animate(CONFIG, animator.models, tmp_path / "a", animator=animator)
    frames = animator.frames(CONFIG)
    video = read_mp4(made.folder / "animation.mp4")
    assert video.shape == frames.shape
    row = json.loads((made.folder / "animation.json").read_text())
    assert (row["prompt"], row["seed"], row["guidance_scale"]) == (CONFIG.prompt, 0, 7.5)
    assert row["hashes"]["motion_module"]["sha256"] == made.record["inputs"]["motion_module"]["fingerprint"]
    with Image.open(made.folder / "animation.gif") as gif:
        assert gif.size == (4 * 48, 4 * 32)
    assert animate(CONFIG, animator.models, tmp_path / "a") == made  # found, not made again
    lora = (WeightedFile(path=trained["motion-lora"], scale=0.3),)
    with pytest.raises(UserError, match=r"motion_lora_scales was \[\] and is now \[0\.3\]"):
        animate(CONFIG, animator.models.model_copy(update={"motion_loras": lora}), tmp_path / "a")


def test_what_cannot_be_made_is_refused(animator: Animator, base: BaseModel, trained: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="33 frames were asked for and the motion module has 32 positions"):
        animator.frames(CONFIG.replace(frames=33))
    with pytest.raises(UserError, match="48x30 pixels is not a size"):
        animator.frames(CONFIG.replace(height=30))
    with pytest.raises(UserError, match="without a motion module"):
        Animator(AnimationModels(base=base, motion_loras=(WeightedFile(path=trained["motion-lora"]),)), "cpu")
    with pytest.raises(UserError, match="is a domain adapter, not a MotionLoRA"):
        lora = WeightedFile(path=trained["domain-adapter"] / "domain_adapter.safetensors")
        Animator(animator.models.model_copy(update={"motion_loras": (lora,)}), "cpu")
    with pytest.raises(UserError, match="does not exist"):
        Animator(AnimationModels(base=base, motion_module=Path("nowhere/at-all")), "cpu")


def test_a_long_prompt_is_said_to_be_cut(animator: Animator, caplog: pytest.LogCaptureFixture) -> None:
    animator.frames(CONFIG.replace(prompt="a red circle " * 20, steps=1))
    assert "The prompt has" in caplog.text
