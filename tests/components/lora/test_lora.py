from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.convert.formats import export_weights, import_original
from components.files.state_dict_keys import lora_to_diffusers
from components.lora import lora
from components.lora.domain_adapter import load_domain_adapter
from components.lora.motion_lora import load_motion_lora
from components.lora.stack import LoraStack
from components.motion.files import load_motion_module
from components.motion.module import MotionModuleConfig, fresh_motion_adapter, insert_motion_module
from components.motion.presets import BASE_SHAPES
from infra.errors import UserError
from tests.components import original_names as names

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TEMPORAL = "up_blocks.1.motion_modules.1.transformer_blocks.0.attn1.to_out.0"


def trained_adapter(unet: Any, path: Path) -> None:
    """Random numbers in place of a training."""
    parameters = lora.add_trainable_lora(unet, "domain-adapter", 4, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    lora.save(path, "domain-adapter", parameters, {"beta_schedule": "linear"})


@pytest.fixture
def video(pipeline: Any, trained: dict[str, Path]) -> Any:
    adapter, _ = load_motion_module(trained["motion-module"])
    return insert_motion_module(pipeline.unet, adapter)


def motion_loras(folder: Path, count: int) -> list[lora.LoraWeights]:
    """Of ranks 1, 2, …, in the original format."""
    found = []
    for rank in range(1, count + 1):
        file = folder / f"{rank}.safetensors"
        save_file(names.filled(names.motion_lora(names.POCKET, rank, layers=1), seed=rank), file)
        found.append(load_motion_lora(file))
    return found


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: "module." + name,
        lambda name: "unet." + name,
        lambda name: name.replace(".processor.", "."),
    ],
)
@pytest.mark.parametrize("kind", lora.TARGET_MODULES)
def test_loras_are_read_under_any_name_they_go_by(kind: str, rename: Any, tmp_path: Path) -> None:
    tensors = names.original(kind)
    save_file({rename(name): tensor for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    found = lora.load(tmp_path / "a.safetensors", kind)
    save_file(tensors, tmp_path / "b.safetensors")
    assert names.equal(found.state, lora.load(tmp_path / "b.safetensors", kind).state)
    assert len(found.state) == len(tensors)


def test_an_alpha_that_peft_noted_counts(tmp_path: Path) -> None:
    """peft's own metadata: alpha 8 at rank 4 is twice the product."""
    state = lora_to_diffusers(names.original("motion-lora"))
    settings = json.dumps({"unet.r": 4, "unet.lora_alpha": 8, "unet.bias": "none", "unet.use_dora": False})
    save_file(state, tmp_path / "a.safetensors", {"lora_adapter_metadata": settings})
    save_file(state, tmp_path / "b.safetensors")
    doubled, plain = (lora.load(tmp_path / f"{name}.safetensors", "motion-lora") for name in "ab")
    layer = min(plain.layers)
    assert torch.allclose(doubled.delta(layer), 2 * plain.delta(layer))
    exported = export_weights(tmp_path / "a.safetensors", tmp_path / "c.safetensors")
    assert torch.allclose(lora.load(exported, "motion-lora").delta(layer), 2 * plain.delta(layer))
    settings = json.dumps({"unet.r": 4, "unet.lora_alpha": 8, "unet.use_rslora": True})
    save_file(state, tmp_path / "a.safetensors", {"lora_adapter_metadata": settings})
    with pytest.raises(UserError, match="trained with use_rslora"):
        lora.load(tmp_path / "a.safetensors", "motion-lora")


def test_what_is_trained_is_what_is_loaded(pipeline: Any, tmp_path: Path) -> None:
    learnt = copy.deepcopy(pipeline.unet)
    trained_adapter(learnt, tmp_path / "a.safetensors")
    z, t, text = torch.randn(2, 4, 8, 8), torch.tensor([400]), torch.randn(2, 32, 128)
    with torch.no_grad():
        plain = pipeline.unet(z, t, text).sample
        LoraStack(pipeline.unet).add("a", load_domain_adapter(tmp_path / "a.safetensors"))
        expected, found = learnt(z, t, text).sample, pipeline.unet(z, t, text).sample
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_ranks_of_any_size_add_up_by_their_scales(video: Any, tmp_path: Path) -> None:
    before = video.get_submodule(TEMPORAL).weight.clone()
    stack, loras = LoraStack(video), motion_loras(tmp_path, 3)
    for index, (weights, scale) in enumerate(zip(loras, (0.5, -1.0, 0.25), strict=True)):
        stack.add(f"lora-{index}", weights, scale)
    layer = TEMPORAL.replace("motion_modules.1.", "motion_modules.1.temporal_transformer.")
    layer = layer.replace("attn1.to_out.0", "attention_blocks.0.processor.to_out_lora")
    expected = before.clone()
    for rank, scale in ((1, 0.5), (2, -1.0), (3, 0.25)):
        file = load_file(tmp_path / f"{rank}.safetensors")
        expected += scale * file[f"{layer}.up.weight"] @ file[f"{layer}.down.weight"]
    assert torch.allclose(video.get_submodule(TEMPORAL).weight, expected, atol=1e-6)
    assert [weights.rank for weights in loras] == [1, 2, 3]


def test_loras_come_off_without_a_trace_in_any_order(video: Any, tmp_path: Path) -> None:
    before = {name: (parameter.data_ptr(), parameter.clone()) for name, parameter in video.named_parameters()}
    loras = motion_loras(tmp_path, 3)
    alone: dict[int, Tensor] = {}
    for order in itertools.permutations(range(3)):
        stack = LoraStack(video)
        for index in order:
            stack.add(str(index), loras[index], 0.7)
        for index in order[:2]:
            stack.remove(str(index))
        last = order[2]
        found = video.get_submodule(TEMPORAL).weight.clone()
        assert torch.equal(found, alone.setdefault(last, found))  # the same bits, whatever was there before
        stack.set_scale(str(last), 0.0)
        assert torch.equal(video.get_submodule(TEMPORAL).weight, before[f"{TEMPORAL}.weight"][1])
        stack.clear()
        assert stack.scales == {}
        for name, parameter in video.named_parameters():
            assert (parameter.data_ptr(), True) == (before[name][0], torch.equal(parameter, before[name][1]))
    assert video.state_dict().keys() >= before.keys()
    assert not any("lora" in name for name in video.state_dict())


def test_alpha_of_the_domain_adapter_is_adjustable(pipeline: Any, trained: dict[str, Path]) -> None:
    weights = load_domain_adapter(trained["domain-adapter"])
    before = pipeline.unet.get_submodule(LAYER).weight.clone()
    stack = LoraStack(pipeline.unet)
    stack.add("domain-adapter", weights, 1.0)
    for alpha in (0.0, 0.2, 1.0, 0.2):
        stack.set_scale("domain-adapter", alpha)
        assert torch.allclose(pipeline.unet.get_submodule(LAYER).weight, before + alpha * weights.delta(LAYER))
    assert stack.scales == {"domain-adapter": 0.2}
    with stack.disabled():
        assert torch.equal(pipeline.unet.get_submodule(LAYER).weight, before)
    assert torch.allclose(pipeline.unet.get_submodule(LAYER).weight, before + 0.2 * weights.delta(LAYER))


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("kind", ["domain-adapter", "motion-lora"])
def test_diffusers_pipelines_load_them_as_w_plus_alpha_up_down(
    kind: str, scale: float, pipeline: Any, video: Any, tmp_path: Path
) -> None:
    """An original file, imported, then by `load_lora_weights`; against weights summed by hand in another copy."""
    from diffusers import AnimateDiffPipeline

    save_file(names.original(kind), tmp_path / "original.safetensors")
    file = import_original(tmp_path / "original.safetensors", tmp_path / "ours.safetensors")
    parts = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    theirs = AnimateDiffPipeline(**parts, unet=video, motion_adapter=None)
    by_hand = copy.deepcopy(video)
    with torch.no_grad():
        for name, down in load_file(tmp_path / "original.safetensors").items():
            if ".down." not in name:
                continue
            layer = name.replace("temporal_transformer.", "").replace("_blocks.0.attention_blocks.0", "_blocks.0.attn1")
            layer = layer.replace("attention_blocks.1", "attn2").replace(".processor", "")
            layer = layer.replace("to_out_lora", "to_out.0").replace("_lora", "").removesuffix(".down.weight")
            up = load_file(tmp_path / "original.safetensors")[name.replace(".down.", ".up.")]
            by_hand.get_submodule(layer).weight += scale * up @ down
    z, text = torch.randn(1, 4, 3, 8, 8), torch.randn(3, 32, 128)

    def answer(unet: Any) -> Tensor:
        with torch.no_grad():
            return torch.as_tensor(unet(z, torch.tensor([400]), text).sample)

    plain = answer(video)
    theirs.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="a")
    theirs.set_adapters(["a"], [scale])
    assert torch.allclose(answer(theirs.unet), answer(by_hand), atol=1e-5)
    assert (answer(by_hand) - plain).abs().max() > 1e-3


def test_only_the_kind_s_layers_are_trainable(pipeline: Any) -> None:
    adapter = fresh_motion_adapter(MotionModuleConfig(preset="from-base"), pipeline.unet)
    video = insert_motion_module(pipeline.unet, adapter)
    parameters = lora.add_trainable_lora(video, "motion-lora", 4, 0)
    learning = {name for name, parameter in video.named_parameters() if parameter.requires_grad}
    assert len(learning) == len(parameters)
    assert all("motion_modules" in name and ".lora_" in name for name in learning)


def test_the_adapter_sits_on_every_attention_of_the_image_layers(pipeline: Any, video: Any) -> None:
    """q, k, v and out of self- and cross-attention, and nothing temporal."""
    for unet in (pipeline.unet, video):
        expected = {
            f"unet.{name}.{projection}.lora_{side}.weight"
            for name, module in unet.named_modules()
            if hasattr(module, "to_q") and "motion_modules" not in name
            for projection in ("to_q", "to_k", "to_v", "to_out.0")
            for side in "AB"
        }
        assert set(lora.add_trainable_lora(unet, "domain-adapter", 2, 0)) == expected


def test_a_convolutional_motion_module_takes_no_lora(pipeline: Any) -> None:
    config = MotionModuleConfig(preset="from-base", network="temporal-convolution")
    video = insert_motion_module(pipeline.unet, fresh_motion_adapter(config, pipeline.unet))
    with pytest.raises(UserError, match="temporal convolutions has none"):
        lora.add_trainable_lora(video, "motion-lora", 4, 0)


def test_the_wrong_kind_is_named(trained: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"is a domain adapter, not a MotionLoRA.*Pass it as --domain-adapter") as one:
        load_motion_lora(trained["domain-adapter"] / "domain_adapter.safetensors")
    with pytest.raises(UserError, match=r"is a MotionLoRA, not a domain adapter.*Pass it as --motion-lora") as other:
        load_domain_adapter(trained["motion-lora"] / "original" / "motion_lora.safetensors")
    assert (one.value.exit_code, other.value.exit_code) == (2, 2)


def test_wrong_sizes_are_listed(trained: dict[str, Path], pipeline: Any) -> None:
    from diffusers import UNet2DConditionModel

    from tests.components.conftest import pocket_unet_config

    wider = UNet2DConditionModel(**{**pocket_unet_config(), "block_out_channels": (48, 64, 96)})
    stack = LoraStack(wider)
    with pytest.raises(UserError, match=r"attn1\.to_\w+(\.0)? is \(32, 32\) in the file and \(48, 48\) in the model"):
        stack.add("a", load_domain_adapter(trained["domain-adapter"]))
    assert stack.scales == {}


@pytest.mark.parametrize(
    ("preset", "says"), [("v3", "with a v2 motion module"), ("v2", "with a v1 or v3 motion module")]
)
def test_a_lora_of_v2_and_a_module_that_is_not_are_told_apart(preset: Any, says: str, tmp_path: Path) -> None:
    """At full size, without memory for the weights of the model."""
    with torch.device("meta"):
        module = fresh_motion_adapter(MotionModuleConfig(preset=preset), BASE_SHAPES["sd15"])
    shapes = names.motion_lora(names.SD15, 2, mid_block=preset == "v3")
    save_file(names.filled(shapes, torch.float16), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=rf"layers in the mid block.*{says}"):
        LoraStack(module).add("a", load_motion_lora(tmp_path / "a.safetensors"))


def test_half_a_pair_is_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    state = load_file(trained["motion-lora"] / "motion_lora.safetensors")
    state.pop(next(name for name in state if name.endswith("lora_B.weight")))
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match="missing or unknown tensors"):
        load_motion_lora(tmp_path / "half.safetensors")


def test_another_preset_warns(trained: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    load_motion_lora(trained["motion-lora"], {"preset": "v2"})
    assert "was trained on a from-base motion module and is used with a v2 one" in caplog.text
