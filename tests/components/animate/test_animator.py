from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.animate.animation import animate
from components.animate.animator import Animator
from components.animate.config import AnimationConfig, AnimationModels, WeightedFile
from components.base.model import BaseModel, load_base
from components.diffusion import sampling
from components.diffusion.noise import SAMPLERS
from components.motion.files import load_motion_module, save_motion_module
from components.motion.module import insert_motion_module
from infra.errors import UserError
from infra.video import read_mp4, write_mp4

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


def test_the_group_norms_follow_the_motion_module_s_notes(
    base: BaseModel, trained: dict[str, Path], tmp_path: Path
) -> None:
    adapter, _ = load_motion_module(trained["motion-module"])
    unet = load_base(base).unet
    z, text, t = torch.randn(1, 4, 4, 8, 8), torch.randn(4, 32, 128), torch.tensor([500])
    for temporal in ("per_frame", "pooled"):
        for image in ("per_frame", "pooled"):
            folder = tmp_path / f"{temporal}-{image}"
            save_motion_module(folder, adapter, {"group_norm": temporal, "image_group_norm": image})
            made = Animator(AnimationModels(base=base, motion_module=folder), "cpu")
            with torch.no_grad():
                assert torch.equal(
                    made._video(z, t, text).sample,
                    insert_motion_module(unet, adapter, temporal, image)(z, t, text).sample,
                )  # type: ignore[arg-type, misc]


def combinations(base: BaseModel, trained: dict[str, Path]) -> dict[str, AnimationModels]:
    plain = AnimationModels(base=base, motion_module=trained["motion-module"])
    lora = WeightedFile(path=trained["motion-lora"], scale=0.6)
    adapter = WeightedFile(path=trained["domain-adapter"], scale=3.0)
    return {
        "images": AnimationModels(base=base),
        "motion": plain,
        "lora": plain.model_copy(update={"motion_loras": (lora,)}),
        "two loras": plain.model_copy(update={"motion_loras": (lora, lora.replace(scale=-0.2))}),
        "adapter": plain.model_copy(update={"domain_adapter": adapter}),
        "all": plain.model_copy(update={"motion_loras": (lora,), "domain_adapter": adapter}),
    }


def test_a_live_animator_changes_to_any_combination(base: BaseModel, trained: dict[str, Path]) -> None:
    """Bit for bit what an animator made for it shows, in whatever order."""
    config = CONFIG
    every = combinations(base, trained)
    expected = {name: Animator(models, "cpu").frames(config) for name, models in every.items()}
    assert len({frames.tobytes() for frames in expected.values()}) == len(expected)
    live = Animator(every["motion"], "cpu")
    for name in ("all", "images", "two loras", "adapter", "motion", "lora", "all", "motion"):
        live.use(every[name])
        assert np.array_equal(live.frames(config), expected[name]), name
        assert live.models == every[name]
    with pytest.raises(UserError, match="is a domain adapter"):
        wrong = WeightedFile(path=trained["domain-adapter"] / "domain_adapter.safetensors")
        live.use(every["motion"].model_copy(update={"motion_loras": (wrong,)}))
    assert np.array_equal(live.frames(config), expected["motion"])


def test_the_given_base_model_comes_back_as_it_was(base: BaseModel, trained: dict[str, Path]) -> None:
    given = load_base(base)
    parts = {"unet": given.unet, "vae": given.vae, "text_encoder": given.text_encoder}
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    places = {name: [parameter.data_ptr() for parameter in part.parameters()] for name, part in parts.items()}
    settings, words = dict(given.scheduler.config), len(given.tokenizer)
    with Animator(combinations(base, trained)["all"], "cpu", base=given) as animator:
        assert animator._base is given
        animator.frames(CONFIG.replace(scheduler="euler"))
        animator.images(CONFIG, 2)
    for name, part in parts.items():
        assert getattr(given, name) is part
        assert [parameter.data_ptr() for parameter in part.parameters()] == places[name]
        assert all(torch.equal(part.state_dict()[key], tensor) for key, tensor in before[name].items())
        assert part.state_dict().keys() == before[name].keys()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in part.modules())
    assert dict(given.scheduler.config) == settings
    assert len(given.tokenizer) == words
    assert type(given).__name__ == "StableDiffusionPipeline"


@pytest.mark.parametrize("scheduler", sorted(SAMPLERS))
def test_every_sampler_gives_the_same_frames_for_the_same_seed(animator: Animator, scheduler: Any) -> None:
    config = CONFIG.replace(scheduler=scheduler, steps=4)
    first = animator.frames(config)
    animator.frames(config.replace(seed=3))
    animator.images(config.replace(scheduler="euler-ancestral"), 2)
    assert np.array_equal(animator.frames(config), first)
    assert not np.array_equal(animator.frames(config.replace(seed=3)), first)
    assert np.abs(animator.images(config, 3)[:2].astype(int) - animator.images(config, 2)).max() <= 1


def test_the_beta_schedule_is_the_motion_module_s_unless_asked_otherwise(animator: Animator) -> None:
    assert np.array_equal(animator.frames(CONFIG.replace(beta_schedule="linear")), animator.frames(CONFIG))
    assert not np.array_equal(animator.frames(CONFIG.replace(beta_schedule="scaled_linear")), animator.frames(CONFIG))


def test_frames_are_decoded_in_parts(animator: Animator, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = animator.frames(CONFIG)
    sizes: list[int] = []
    decode = animator._base.vae.decode
    monkeypatch.setattr(sampling, "DECODED_PIXELS_MAX", 3 * 32 * 48)
    monkeypatch.setattr(animator._base.vae, "decode", lambda z, **given: sizes.append(len(z)) or decode(z, **given))
    assert np.abs(animator.frames(CONFIG).astype(int) - whole).max() <= 1
    assert sizes == [3, 1]


@pytest.fixture
def control(base: BaseModel, tmp_path: Path) -> dict[str, Path]:
    """A ControlNet as it is before training, one with random outputs, and what they follow."""
    from diffusers import ControlNetModel

    net = ControlNetModel.from_unet(load_base(base).unet, conditioning_embedding_out_channels=(16, 32, 64))
    net.save_pretrained(tmp_path / "fresh")
    with torch.no_grad():
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
            block.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    net.save_pretrained(tmp_path / "trained")
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    write_mp4(tmp_path / "edges.mp4", pictures, 8)
    (tmp_path / "pictures").mkdir()
    for index, picture in enumerate(read_mp4(tmp_path / "edges.mp4")):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{index:03d}.png")
    return {name: tmp_path / name for name in ("fresh", "trained", "edges.mp4", "pictures")}


def test_a_controlnet_steers_every_frame(animator: Animator, control: dict[str, Path], tmp_path: Path) -> None:
    def shown(*nets: WeightedFile, videos: tuple[Path, ...]) -> Any:
        models = animator.models.model_copy(update={"controlnets": nets})
        return Animator(models, "cpu").frames(CONFIG.replace(control_videos=videos))

    plain, edges = animator.frames(CONFIG), control["edges.mp4"]
    assert np.array_equal(shown(WeightedFile(path=control["fresh"]), videos=(edges,)), plain)  # its outputs are zero
    net = WeightedFile(path=control["trained"])
    steered = shown(net, videos=(edges,))
    assert not np.array_equal(steered, plain)
    assert np.array_equal(shown(net, videos=(control["pictures"],)), steered)
    assert np.array_equal(shown(net.replace(scale=0.0), videos=(edges,)), plain)
    assert not np.array_equal(shown(net, net, videos=(edges, edges)), steered)

    config = CONFIG.replace(control_videos=(edges,))
    made = animate(config, animator.models.model_copy(update={"controlnets": (net,)}), tmp_path / "a", "cpu")
    assert {"controlnet_0", "control_video_0"} <= made.record["inputs"].keys()
    with pytest.raises(UserError, match="control_video_0"):
        other = CONFIG.replace(control_videos=(control["pictures"],))
        animate(other, animator.models.model_copy(update={"controlnets": (net,)}), tmp_path / "a", "cpu")


def test_control_that_cannot_be_followed_is_refused(
    animator: Animator, base: BaseModel, control: dict[str, Path], tmp_path: Path
) -> None:
    net = WeightedFile(path=control["trained"])
    steered = Animator(animator.models.model_copy(update={"controlnets": (net,)}), "cpu")
    for videos, says in (
        ((), "1 ControlNets and 0 control videos"),
        ((control["fresh"] / "config.json",), "cannot be read as a video"),
    ):
        with pytest.raises(UserError, match=says):
            steered.frames(CONFIG.replace(control_videos=videos))
    with pytest.raises(UserError, match="has 5 pictures, and the animation 6 frames"):
        steered.frames(CONFIG.replace(frames=6, control_videos=(control["edges.mp4"],)))
    with pytest.raises(UserError, match="A ControlNet was given without a motion module"):
        Animator(AnimationModels(base=base, controlnets=(net,)), "cpu")
    with pytest.raises(UserError, match="is not a ControlNet"):
        Animator(animator.models.model_copy(update={"controlnets": (WeightedFile(path=tmp_path),)}), "cpu")
    config = control["trained"] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cross_attention_dim": 768}))
    with pytest.raises(UserError, match=r"could not be loaded as a ControlNet|does not fit the base model"):
        Animator(animator.models.model_copy(update={"controlnets": (net,)}), "cpu")
