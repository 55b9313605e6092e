from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.formats import (
    describe,
    export_original,
    import_original,
)
from components.motion_files import load_motion_module
from components.motion_module import MotionModuleConfig, fresh_motion_adapter
from components.names import lora_to_diffusers, lora_to_original, motion_from_original, motion_to_original
from components.weight_files import read_header
from infra.errors import UserError


def test_names_of_the_original_motion_module() -> None:
    """The pairs of the official code (motion_module.py) and diffusers' conversion script, written out by hand."""
    at = "up_blocks.1.motion_modules.2."
    pairs = {
        f"{at}temporal_transformer.norm.weight": f"{at}norm.weight",
        f"{at}temporal_transformer.proj_out.bias": f"{at}proj_out.bias",
        f"{at}temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q.weight": (
            f"{at}transformer_blocks.0.attn1.to_q.weight"
        ),
        f"{at}temporal_transformer.transformer_blocks.0.attention_blocks.1.to_out.0.bias": (
            f"{at}transformer_blocks.0.attn2.to_out.0.bias"
        ),
        f"{at}temporal_transformer.transformer_blocks.0.norms.0.weight": f"{at}transformer_blocks.0.norm1.weight",
        f"{at}temporal_transformer.transformer_blocks.0.norms.1.bias": f"{at}transformer_blocks.0.norm2.bias",
        f"{at}temporal_transformer.transformer_blocks.0.ff_norm.bias": f"{at}transformer_blocks.0.norm3.bias",
        f"{at}temporal_transformer.transformer_blocks.0.ff.net.0.proj.weight": (
            f"{at}transformer_blocks.0.ff.net.0.proj.weight"
        ),
    }
    numbered = {name: torch.tensor(float(i)) for i, name in enumerate(pairs)}
    converted = motion_from_original(numbered)
    assert {name: converted[pairs[name]] for name in pairs} == numbered
    assert motion_to_original(converted) == numbered


@pytest.mark.parametrize("kind", ["domain-adapter", "motion-lora"])
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


def test_loras_make_the_round_trip(trained: dict[str, Path]) -> None:
    for kind in ("domain-adapter", "motion-lora"):
        state = load_file(next(trained[kind].glob("*.safetensors")))
        back = lora_to_diffusers(lora_to_original(state))
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


def test_diffusers_reads_the_original_export_exactly(trained: dict[str, Path], tmp_path: Path) -> None:
    from diffusers import MotionAdapter

    folder = trained["motion-module"]
    file = export_original(folder, tmp_path / "mm.safetensors")
    read = MotionAdapter.from_single_file(str(file), config=str(folder), local_files_only=True).state_dict()
    expected = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected)


def test_motion_module_makes_the_round_trip(trained: dict[str, Path], tmp_path: Path) -> None:
    file = export_original(trained["motion-module"], tmp_path / "mm.safetensors")
    folder = import_original(file, tmp_path / "back")
    (before, notes), (after, notes_after) = load_motion_module(trained["motion-module"]), load_motion_module(folder)
    assert all(torch.equal(after.state_dict()[name], tensor) for name, tensor in before.state_dict().items())
    shape = {name: value for name, value in before.config.items() if not name.startswith("_")}
    assert {name: after.config[name] for name in shape} == shape
    assert notes_after == notes


def test_a_file_of_the_official_trainer_is_read(pipeline: Any, tmp_path: Path) -> None:
    """`module.` before every name, no positions, and the image model's tensors beside (what train.py saves)."""
    adapter = fresh_motion_adapter(MotionModuleConfig(preset="from-base"), pipeline.unet)
    original = motion_to_original(adapter.state_dict())
    state = {"module." + name: tensor for name, tensor in original.items() if not name.endswith("pe")}
    state["module.conv_in.weight"] = pipeline.unet.conv_in.weight
    metadata = {"animateflow.heads": "4,8,8", "animateflow.norm_groups": "16"}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "a.safetensors", metadata)
    read = load_motion_module(tmp_path / "a.safetensors")[0].state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in adapter.state_dict().items())


def test_describe(trained: dict[str, Path]) -> None:
    module = describe(trained["motion-module"])
    assert (module["kind"], module["format"], module["preset"]) == ("motion-module", "diffusers", "from-base")
    assert (
        module["parameters"]
        == json.loads((trained["motion-module"] / "record.json").read_text())["counts"]["trainable_parameters"]
    )
    assert module["metadata"]["animateflow.group_norm"] == "per_frame"
    lora = describe(trained["motion-lora"] / "original" / "motion_lora.safetensors")
    assert (lora["kind"], lora["format"], lora["rank"]) == ("motion-lora", "original", 4)
    assert describe(trained["domain-adapter"])["kind"] == "domain-adapter"


def zip_archive(path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, path)


def cut_short(path: Path) -> None:
    save_file({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: path.write_text("<!DOCTYPE html><html>"), "is a web page"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is a Python pickle"),
        (zip_archive, "is a zip archive"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a git-lfs pointer"),
        (lambda path: path.write_text('{"error": "login"}'), "is a JSON text"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(bytes(range(200, 250))), "is not a safetensors file"),
        (lambda path: path.write_bytes((20).to_bytes(8, "little") + b"{" + b"x" * 40), "is damaged"),
        (cut_short, "was cut short"),
        (lambda path: None, "does not exist"),
    ],
)
def test_what_is_not_safetensors_is_named(write: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write(path)
    with pytest.raises(UserError, match=says) as caught:
        read_header(path)
    assert caught.value.exit_code == 2


def test_exporting_what_has_no_original_format(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="a file of unknown kind"):
        export_original(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
