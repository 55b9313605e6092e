from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.convert.formats import export_weights, import_original
from components.convert.info import describe
from components.files.state_dict_keys import motion_module_to_original
from components.motion.files import load_motion_module
from tests.components import original_names as names


def test_diffusers_reads_an_imported_motion_module(tmp_path: Path) -> None:
    from diffusers import MotionAdapter

    tensors = names.original("motion-module")
    save_file(tensors, tmp_path / "original.safetensors", names.POCKET_METADATA)
    folder = import_original(tmp_path / "original.safetensors", tmp_path / "folder")
    read = MotionAdapter.from_pretrained(folder)
    again = MotionAdapter.from_single_file(
        str(tmp_path / "original.safetensors"), config=str(folder), local_files_only=True
    )
    assert names.equal(again.state_dict(), read.state_dict())
    assert read.config.motion_num_attention_heads == [4, 8, 8]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"motion_layers_per_block": [1, 1, 1]}))
    same, _ = load_motion_module(folder)  # one for each level says the same
    assert names.equal(same.state_dict(), read.state_dict())
    name = "up_blocks.2.motion_modules.1.transformer_blocks.0.attn2.to_out.0.bias"
    theirs = "up_blocks.2.motion_modules.1.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_out.0.bias"
    assert torch.equal(read.state_dict()[name], tensors[theirs])


def test_a_loaded_module_is_fp32_trainable_and_its_own(tmp_path: Path) -> None:
    """Not the bytes of its file, which may be written to later."""
    tensors, file = names.original("motion-module"), tmp_path / "a.safetensors"
    save_file(tensors, file, names.POCKET_METADATA)
    adapter, _ = load_motion_module(file)
    assert all(parameter.requires_grad for parameter in adapter.parameters())
    assert {(t.dtype, t.device.type) for t in adapter.state_dict().values()} == {(torch.float32, "cpu")}
    with file.open("r+b") as handle:
        handle.seek(-sum(tensor.nbytes for tensor in tensors.values()), 2)
        handle.write(bytes(10**6))
    found = motion_module_to_original(adapter.state_dict())
    assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in tensors.items())


def wrapped(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """As the official trainer saves: the whole UNet of a wrapped model, without positions, beside counters."""
    state = {f"module.{name}": tensor for name, tensor in tensors.items() if not name.endswith("pe")}
    state |= {
        "module.conv_in.weight": torch.ones(32, 4, 3, 3),
        "module.down_blocks.0.resnets.0.norm1.bias": torch.ones(32),
    }
    return {"epoch": 3, "global_step": 100, "state_dict": state, "animatediff_config": {"a": 1}}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_the_official_trainer_is_read(zipped: bool, tmp_path: Path) -> None:
    """A pickle says nothing of heads; this one is of official widths per head, 8."""
    widths = (64, 64, 128)
    tensors = names.filled(names.motion_module(widths, 32, layers=1))
    torch.save(wrapped(tensors), tmp_path / "checkpoint.ckpt", _use_new_zipfile_serialization=zipped)
    adapter, notes = load_motion_module(tmp_path / "checkpoint.ckpt")
    found = motion_module_to_original(adapter.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items() if not name.endswith("pe"))
    assert all(torch.allclose(found[name], t, atol=1e-6) for name, t in tensors.items() if name.endswith("pe"))
    assert notes["group_norm"] == "per_frame"
    folder = import_original(tmp_path / "checkpoint.ckpt", tmp_path / "folder", "from-base", "pooled")
    assert load_motion_module(folder)[1]["group_norm"] == "pooled"
    assert describe(tmp_path / "checkpoint.ckpt")["kind"] == "motion-module"


def test_other_lengths_of_positions_are_made_anew(tmp_path: Path) -> None:
    tensors = names.original("motion-module", torch.float16)
    save_file(tensors, tmp_path / "a.safetensors", names.POCKET_METADATA)
    for frames in (None, 8, 32, 64):
        adapter, _ = load_motion_module(tmp_path / "a.safetensors", frames)
        pe = adapter.state_dict()["down_blocks.1.motion_modules.0.transformer_blocks.0.pos_embed.pe"]
        assert torch.allclose(pe, names.sinusoid(frames or 32, 64), atol=1e-6)  # not what fp16 left of them
        assert adapter.config.motion_max_seq_length == (frames or 32)
    folder = import_original(tmp_path / "a.safetensors", tmp_path / "folder", max_frames=48)
    assert describe(folder)["max_frames"] == "48"
    back = load_file(export_weights(folder, tmp_path / "b.safetensors"))
    assert {tuple(back.pop(name).shape[:2]) for name in list(back) if name.endswith(".pe")} == {(1, 48)}
    assert names.equal(back, {name: tensor for name, tensor in tensors.items() if not name.endswith(".pe")})


def test_positions_that_are_not_sinusoids_are_kept_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = names.original("motion-module")
    tensors |= {name: tensor.roll(1, 1) for name, tensor in tensors.items() if name.endswith("pe")}
    save_file(tensors, tmp_path / "a.safetensors", names.POCKET_METADATA)
    adapter, _ = load_motion_module(tmp_path / "a.safetensors")
    assert names.equal(motion_module_to_original(adapter.state_dict()), tensors)
    assert "are not sinusoids. They are used as they are" in caplog.text
