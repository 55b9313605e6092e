from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.convert import formats
from components.convert.formats import export_fresh, export_weights, import_original
from components.convert.info import describe
from components.files.state_dict_keys import motion_module_to_original
from components.lora import lora
from components.motion import files as motion_files
from components.motion.files import load_motion_module
from components.motion.module import MotionModuleConfig, config_metadata, fresh_motion_adapter
from components.motion.presets import PRESETS
from infra.errors import UserError
from tests.components import original_names as names

LORA_KINDS = ("domain-adapter", "motion-lora")


@pytest.mark.parametrize(
    ("preset", "widths", "positions", "keys", "parameters"),
    [
        ("v1", names.SD15, 24, 560, 417_137_600),
        ("v2", names.SD15, 32, 588, 453_209_280),
        ("v3", names.SD15, 32, 560, 417_137_600),
        ("sdxl-beta", names.SDXL, 32, 420, 236_779_200),
    ],
)
def test_presets_have_the_tensors_of_the_published_rules(
    preset: Any, widths: tuple[int, ...], positions: int, keys: int, parameters: int
) -> None:
    with torch.device("meta"):
        base = formats.base_shape("sdxl" if preset == "sdxl-beta" else "sd15")
        adapter = fresh_motion_adapter(MotionModuleConfig(preset=preset), base)
    found = {name: tuple(tensor.shape) for name, tensor in motion_module_to_original(adapter.state_dict()).items()}
    expected = names.motion_module(widths, positions, mid_block=preset == "v2")
    assert found == expected
    assert len(expected) == keys
    assert sum(math.prod(shape) for name, shape in expected.items() if not name.endswith(".pe")) == parameters


@pytest.mark.parametrize("preset", ["v1", "v2", "v3"])
def test_a_full_size_export_is_read_exactly_by_diffusers(preset: Any, tmp_path: Path) -> None:
    """Constant tensors, each of its own value: a gigabyte of random numbers would take longer and show no more."""
    from diffusers import MotionAdapter

    config = MotionModuleConfig(preset=preset)
    with torch.device("meta"):
        adapter = fresh_motion_adapter(config, formats.base_shape("sd15"))
    state = {
        name: torch.full(tensor.shape, index / 1024, dtype=torch.float16)
        for index, (name, tensor) in enumerate(adapter.state_dict().items())
        if not name.endswith(".pe")
    }
    positions = {n: names.sinusoid(*t.shape[1:]).half() for n, t in adapter.state_dict().items() if n.endswith(".pe")}
    adapter.save_config(tmp_path / "config")
    file = tmp_path / f"{preset}.safetensors"
    motion_files.write_original_motion_module(file, state | positions, config_metadata(config))

    with safe_open(file, "pt") as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    assert shapes == names.motion_module(names.SD15, PRESETS[preset].positions, mid_block=preset == "v2")
    read = MotionAdapter.from_single_file(
        str(file), config=str(tmp_path / "config"), local_files_only=True, torch_dtype=torch.float16
    ).state_dict()
    assert names.equal({name: read[name] for name in state}, state)
    assert read.keys() == state.keys() | positions.keys()
    assert describe(file)["preset"] == preset


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["motion-module", *LORA_KINDS])
def test_original_files_come_back_byte_for_byte(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = names.original(kind, dtype)
    save_file(tensors, tmp_path / "original.safetensors", names.POCKET_METADATA)
    target = tmp_path / ("folder" if kind == "motion-module" else "ours.safetensors")
    ours = import_original(tmp_path / "original.safetensors", target)
    export_weights(ours, tmp_path / "back.safetensors")
    assert names.equal(load_file(tmp_path / "back.safetensors"), tensors)
    assert describe(ours)["format"] == "diffusers"


def test_a_trained_module_makes_the_round_trip_with_its_notes(trained: dict[str, Path], tmp_path: Path) -> None:
    file = export_weights(trained["motion-module"], tmp_path / "mm.safetensors")
    folder = import_original(file, tmp_path / "back")
    (before, notes), (after, notes_after) = load_motion_module(trained["motion-module"]), load_motion_module(folder)
    assert names.equal(after.state_dict(), before.state_dict())
    assert notes_after == notes


@pytest.mark.parametrize("kind", LORA_KINDS)
def test_lora_names_lead_the_official_loader_to_its_layer(kind: str, trained: dict[str, Path]) -> None:
    """`load_diffusers_lora` of the official code finds a layer by deleting these parts of a name."""
    file = next((trained[kind] / "original").glob("*.safetensors"))
    ours = load_file(next(trained[kind].glob("*.safetensors")))
    for name, down in load_file(file).items():
        if ".down." not in name:
            continue
        layer = name.replace("processor.", "").replace("_lora", "").replace("down.", "")
        layer = layer.replace("to_out.", "to_out.0.").removesuffix(".weight")
        if kind == "motion-lora":
            assert ".temporal_transformer.transformer_blocks.0.attention_blocks." in layer
            layer = layer.replace(".temporal_transformer", "")
            layer = layer.replace("attention_blocks.0", "attn1").replace("attention_blocks.1", "attn2")
        assert torch.equal(ours[f"unet.{layer}.lora_A.weight"], down)
        assert torch.equal(ours[f"unet.{layer}.lora_B.weight"], load_file(file)[name.replace(".down.", ".up.")])


@pytest.mark.parametrize("kind", ["motion-module", *LORA_KINDS])
def test_missing_and_unexpected_tensors_are_listed(kind: str, tmp_path: Path) -> None:
    def refused(tensors: dict[str, Tensor]) -> str:
        save_file(tensors, tmp_path / "a.safetensors", names.POCKET_METADATA)
        with pytest.raises(UserError) as caught:
            load_motion_module(tmp_path / "a.safetensors") if kind == "motion-module" else lora.load(
                tmp_path / "a.safetensors", kind
            )
        assert caught.value.exit_code == 2
        return str(caught.value)

    whole = names.original(kind)
    gone = [name for name in whole if name.startswith("up_blocks.1") and not name.endswith(".pe")][5]
    less = {name: tensor for name, tensor in whole.items() if name != gone}
    assert "up_blocks.1" in refused(less)
    assert "missing" in refused(less)
    assert "up_blocks.7.strange" in refused({**whole, "up_blocks.7.strange": torch.zeros(2)})
    assert gone.split(".weight")[0].split(".")[0] in refused({**less, gone: torch.zeros(3, 3)})
    assert "NaN" in refused({**whole, gone: torch.full_like(whole[gone], math.nan)})
    assert "not as floating-point" in refused({**whole, gone: whole[gone].to(torch.int64)})


def test_a_fresh_file_needs_no_weights(base_folder: Path, tmp_path: Path) -> None:
    config = MotionModuleConfig(preset="from-base")
    file = export_fresh(config, str(base_folder), tmp_path / "a.safetensors", 3, "fp16")
    tensors = load_file(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == names.motion_module(names.POCKET, 32, layers=1)
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    assert all(tensor.count_nonzero() == 0 for name, tensor in tensors.items() if ".proj_out." in name)
    assert all(tensor.count_nonzero() > 0 for name, tensor in tensors.items() if name.endswith("to_q.weight"))
    again = export_fresh(
        MotionModuleConfig(preset="from-base"), str(base_folder), tmp_path / "b.safetensors", 3, "fp16"
    )
    assert again.read_bytes() == file.read_bytes()
    with pytest.raises(UserError, match="Known names: sd15, sdxl"):
        export_fresh(MotionModuleConfig(preset="v3"), "sd16", tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="Preset v3 is for a base model of widths"):
        export_fresh(MotionModuleConfig(preset="v3"), str(base_folder), tmp_path / "c.safetensors")


def test_exporting_what_has_no_original_format(tmp_path: Path, base_folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="a file of unknown kind"):
        export_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    config = MotionModuleConfig(preset="from-base", network="temporal-convolution")
    adapter = fresh_motion_adapter(config, formats.base_shape(str(base_folder)))
    motion_files.save_motion_module(tmp_path / "mm", adapter, config_metadata(config))
    with pytest.raises(UserError, match="temporal convolutions"):
        export_weights(tmp_path / "mm", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_values_that_overflow_fp16_are_refused(tmp_path: Path) -> None:
    tensors = names.original("motion-lora")
    tensors[next(iter(tensors))][0, 0] = 1e6
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="fp16 cannot hold"):
        export_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "fp16")
    export_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "bf16")
    assert describe(tmp_path / "b.safetensors")["dtypes"] == ["BF16"]


def test_a_motion_lora_for_a1111_names_layers_of_the_motion_module(trained: dict[str, Path], tmp_path: Path) -> None:
    """sd-webui-animatediff registers every layer of the motion module under its name with `_` for `.`; A1111's loader
    cuts a key at its first dot and looks the rest up there; without an alpha or with alpha = rank it adds up @ down."""
    export_weights(trained["motion-lora"], tmp_path / "a1111.safetensors", program="a1111")
    module = load_file(export_weights(trained["motion-module"], tmp_path / "module.safetensors"))
    registered = {name.removesuffix(".weight").replace(".", "_"): tensor for name, tensor in module.items()}
    ours = lora.load(trained["motion-lora"] / "motion_lora.safetensors", "motion-lora").state
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(tmp_path / "a1111.safetensors").items():
        layer, part = key.split(".", 1)
        found.setdefault(layer, {})[part] = tensor
    assert set(found) <= set(registered)
    assert len(found) == len(ours) // 2
    for layer, parts in found.items():
        assert set(parts) == {"lora_down.weight", "lora_up.weight", "alpha"}
        delta = parts["lora_up.weight"] @ parts["lora_down.weight"]
        assert delta.shape == registered[layer].shape
        assert float(parts["alpha"]) == parts["lora_down.weight"].shape[0]
    name = "down_blocks_0_motion_modules_0_temporal_transformer_transformer_blocks_0_attention_blocks_1_to_out_0"
    at = "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn2.to_out.0"
    assert torch.equal(found[name]["lora_up.weight"], ours[f"{at}.lora_B.weight"])


def test_a_domain_adapter_for_a1111_is_a_kohya_lora(base: Any, trained: dict[str, Path], tmp_path: Path) -> None:
    from components.base.model import load_base
    from components.lora.domain_adapter import load_domain_adapter
    from components.lora.kohya import fuse_lora
    from components.lora.stack import LoraStack

    file = export_weights(trained["domain-adapter"], tmp_path / "adapter.safetensors", program="a1111")
    fused, folded = load_base(base), load_base(base)
    fuse_lora(fused.unet, fused.text_encoder, file, 1.0)
    LoraStack(folded.unet).add("adapter", load_domain_adapter(trained["domain-adapter"]), 1.0)
    before = load_base(base).unet.state_dict()
    changed = [name for name, value in fused.unet.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    for name, value in fused.unet.state_dict().items():
        torch.testing.assert_close(value, folded.unet.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["motion-module", "motion-lora", "domain-adapter"])
def test_the_official_code_gets_a_file_for_torch_load(kind: str, trained: dict[str, Path], tmp_path: Path) -> None:
    original = load_file(export_weights(trained[kind], tmp_path / "a.safetensors"))
    export_weights(trained[kind], tmp_path / "a.ckpt", program="official")
    found = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert found.keys() == original.keys()
    assert all(torch.equal(found[name], original[name]) for name in found)
    assert describe(tmp_path / "a.ckpt")["kind"] == kind
    with pytest.raises(UserError, match="Name a .ckpt file"):
        export_weights(trained[kind], tmp_path / "b.safetensors", program="official")


@pytest.mark.parametrize("kind", ["motion-module", "motion-lora", "domain-adapter"])
def test_diffusers_gets_a_folder(kind: str, trained: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import MotionAdapter
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    folder = export_weights(trained[kind], tmp_path / "folder", program="diffusers")
    if kind == "motion-module":
        ours = load_motion_module(trained[kind])[0].state_dict()
        theirs = MotionAdapter.from_pretrained(folder).state_dict()
    else:
        ours = lora.load(trained[kind] / f"{kind.replace('-', '_')}.safetensors", kind).state
        theirs = StableDiffusionLoraLoaderMixin.lora_state_dict(str(folder))[0]
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    with pytest.raises(UserError, match="Name a folder"):
        export_weights(trained[kind], tmp_path / "b.safetensors", program="diffusers")
