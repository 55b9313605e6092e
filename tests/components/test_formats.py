from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from components import formats, lora, motion_files
from components.formats import export_fresh, export_original, import_original
from components.motion_files import load_motion_module
from components.motion_module import MotionModuleConfig, fresh_motion_adapter
from components.names import lora_to_diffusers, motion_to_original
from components.presets import PRESETS
from components.weight_info import describe
from infra.errors import UserError
from tests.components import original_names as names

POCKET = (32, 64, 96)
POCKET_NOTES = {"animateflow.heads": "4,8,8", "animateflow.norm_groups": "16", "animateflow.preset": "from-base"}
LORA_KINDS = ("domain-adapter", "motion-lora")


def equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Same names, dtypes and bits."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def original(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A file of the pocket's sizes in the original format, from the naming rules."""
    shapes = {
        "motion-module": lambda: names.motion_module(POCKET, 32, layers=1),
        "motion-lora": lambda: names.motion_lora(POCKET, 4, layers=1),
        "domain-adapter": lambda: names.domain_adapter(POCKET, 128, 4, layers=1),
    }[kind]()
    return names.filled(shapes, dtype)


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
    found = {name: tuple(tensor.shape) for name, tensor in motion_to_original(adapter.state_dict()).items()}
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
    motion_files.write_motion_original(file, state | positions, formats.motion_notes(config))

    with safe_open(file, "pt") as opened:
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    assert shapes == names.motion_module(names.SD15, PRESETS[preset].positions, mid_block=preset == "v2")
    read = MotionAdapter.from_single_file(
        str(file), config=str(tmp_path / "config"), local_files_only=True, torch_dtype=torch.float16
    ).state_dict()
    assert equal({name: read[name] for name in state}, state)
    assert read.keys() == state.keys() | positions.keys()
    assert describe(file)["preset"] == preset


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["motion-module", *LORA_KINDS])
def test_original_files_come_back_byte_for_byte(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = original(kind, dtype)
    save_file(tensors, tmp_path / "original.safetensors", POCKET_NOTES)
    target = tmp_path / ("folder" if kind == "motion-module" else "ours.safetensors")
    ours = import_original(tmp_path / "original.safetensors", target)
    export_original(ours, tmp_path / "back.safetensors")
    assert equal(load_file(tmp_path / "back.safetensors"), tensors)
    assert describe(ours)["format"] == "diffusers"


def test_diffusers_reads_an_imported_motion_module(tmp_path: Path) -> None:
    from diffusers import MotionAdapter

    tensors = original("motion-module")
    save_file(tensors, tmp_path / "original.safetensors", POCKET_NOTES)
    folder = import_original(tmp_path / "original.safetensors", tmp_path / "folder")
    read = MotionAdapter.from_pretrained(folder)
    again = MotionAdapter.from_single_file(
        str(tmp_path / "original.safetensors"), config=str(folder), local_files_only=True
    )
    assert equal(again.state_dict(), read.state_dict())
    assert read.config.motion_num_attention_heads == [4, 8, 8]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"motion_layers_per_block": [1, 1, 1]}))
    assert equal(load_motion_module(folder)[0].state_dict(), read.state_dict())  # one for each level says the same
    name = "up_blocks.2.motion_modules.1.transformer_blocks.0.attn2.to_out.0.bias"
    theirs = "up_blocks.2.motion_modules.1.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_out.0.bias"
    assert torch.equal(read.state_dict()[name], tensors[theirs])


def test_a_trained_module_makes_the_round_trip_with_its_notes(trained: dict[str, Path], tmp_path: Path) -> None:
    file = export_original(trained["motion-module"], tmp_path / "mm.safetensors")
    folder = import_original(file, tmp_path / "back")
    (before, notes), (after, notes_after) = load_motion_module(trained["motion-module"]), load_motion_module(folder)
    assert equal(after.state_dict(), before.state_dict())
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


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: "module." + name,
        lambda name: "unet." + name,
        lambda name: name.replace(".processor.", "."),
    ],
)
@pytest.mark.parametrize("kind", LORA_KINDS)
def test_loras_are_read_under_any_name_they_go_by(kind: str, rename: Any, tmp_path: Path) -> None:
    tensors = original(kind)
    save_file({rename(name): tensor for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    found = lora.load(tmp_path / "a.safetensors", kind)
    save_file(tensors, tmp_path / "b.safetensors")
    assert equal(found.state, lora.load(tmp_path / "b.safetensors", kind).state)
    assert len(found.state) == len(tensors)


def test_an_alpha_that_peft_noted_counts(tmp_path: Path) -> None:
    """peft's own metadata: alpha 8 at rank 4 is twice the product."""
    state = lora_to_diffusers(original("motion-lora"))
    settings = json.dumps({"unet.r": 4, "unet.lora_alpha": 8, "unet.bias": "none", "unet.use_dora": False})
    save_file(state, tmp_path / "a.safetensors", {"lora_adapter_metadata": settings})
    save_file(state, tmp_path / "b.safetensors")
    doubled, plain = (lora.load(tmp_path / f"{name}.safetensors", "motion-lora") for name in "ab")
    layer = min(plain.layers)
    assert torch.allclose(doubled.delta(layer), 2 * plain.delta(layer))
    exported = export_original(tmp_path / "a.safetensors", tmp_path / "c.safetensors")
    assert torch.allclose(lora.load(exported, "motion-lora").delta(layer), 2 * plain.delta(layer))
    settings = json.dumps({"unet.r": 4, "unet.lora_alpha": 8, "unet.use_rslora": True})
    save_file(state, tmp_path / "a.safetensors", {"lora_adapter_metadata": settings})
    with pytest.raises(UserError, match="trained with use_rslora"):
        lora.load(tmp_path / "a.safetensors", "motion-lora")


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
    found = motion_to_original(adapter.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items() if not name.endswith("pe"))
    assert all(torch.allclose(found[name], t, atol=1e-6) for name, t in tensors.items() if name.endswith("pe"))
    assert notes["group_norm"] == "per_frame"
    folder = import_original(tmp_path / "checkpoint.ckpt", tmp_path / "folder", "from-base", "pooled")
    assert load_motion_module(folder)[1]["group_norm"] == "pooled"
    assert describe(tmp_path / "checkpoint.ckpt")["kind"] == "motion-module"


def test_other_lengths_of_positions_are_made_anew(tmp_path: Path) -> None:
    tensors = original("motion-module", torch.float16)
    save_file(tensors, tmp_path / "a.safetensors", POCKET_NOTES)
    for frames in (None, 8, 32, 64):
        adapter, _ = load_motion_module(tmp_path / "a.safetensors", frames)
        pe = adapter.state_dict()["down_blocks.1.motion_modules.0.transformer_blocks.0.pos_embed.pe"]
        assert torch.allclose(pe, names.sinusoid(frames or 32, 64), atol=1e-6)  # not what fp16 left of them
        assert adapter.config.motion_max_seq_length == (frames or 32)
    folder = import_original(tmp_path / "a.safetensors", tmp_path / "folder", max_frames=48)
    assert describe(folder)["max_frames"] == "48"
    back = load_file(export_original(folder, tmp_path / "b.safetensors"))
    assert {tuple(back.pop(name).shape[:2]) for name in list(back) if name.endswith(".pe")} == {(1, 48)}
    assert equal(back, {name: tensor for name, tensor in tensors.items() if not name.endswith(".pe")})


def test_positions_that_are_no_sinusoids_are_kept_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = original("motion-module")
    tensors |= {name: tensor.roll(1, 1) for name, tensor in tensors.items() if name.endswith("pe")}
    save_file(tensors, tmp_path / "a.safetensors", POCKET_NOTES)
    adapter, _ = load_motion_module(tmp_path / "a.safetensors")
    assert equal(motion_to_original(adapter.state_dict()), tensors)
    assert "positions of its own" in caplog.text


@pytest.mark.parametrize("kind", ["motion-module", *LORA_KINDS])
def test_missing_and_unexpected_tensors_are_listed(kind: str, tmp_path: Path) -> None:
    def refused(tensors: dict[str, Tensor]) -> str:
        save_file(tensors, tmp_path / "a.safetensors", POCKET_NOTES)
        with pytest.raises(UserError) as caught:
            load_motion_module(tmp_path / "a.safetensors") if kind == "motion-module" else lora.load(
                tmp_path / "a.safetensors", kind
            )
        assert caught.value.exit_code == 2
        return str(caught.value)

    whole = original(kind)
    gone = [name for name in whole if name.startswith("up_blocks.1") and not name.endswith(".pe")][5]
    less = {name: tensor for name, tensor in whole.items() if name != gone}
    assert "up_blocks.1" in refused(less)
    assert "missing" in refused(less)
    assert "up_blocks.7.strange" in refused({**whole, "up_blocks.7.strange": torch.zeros(2)})
    assert gone.split(".weight")[0].split(".")[0] in refused({**less, gone: torch.zeros(3, 3)})
    assert "NaN" in refused({**whole, gone: torch.full_like(whole[gone], math.nan)})
    assert "not as floating-point" in refused({**whole, gone: whole[gone].to(torch.int64)})


def test_a_v1_file_without_notes_is_known_by_its_positions(tmp_path: Path) -> None:
    for positions, preset, image in ((24, "v1", "pooled"), (32, "v3", "per_frame")):
        shapes = names.motion_module(names.SD15, positions)
        header = {"__metadata__": {}} | {
            name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()
        }
        at = 0
        for name, shape in shapes.items():
            header[name]["data_offsets"] = [at, at := at + 2 * math.prod(shape)]
        text = json.dumps(header).encode()
        with (tmp_path / "a.safetensors").open("wb") as file:  # sparse: the tensors take no room and are never read
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        described = describe(tmp_path / "a.safetensors")
        assert (described["preset"], described["image_group_norm"]) == (preset, image)
        assert described["parameters"] == 417_137_600


def test_a_fresh_file_needs_no_weights(base_folder: Path, tmp_path: Path) -> None:
    config = MotionModuleConfig(preset="from-base")
    file = export_fresh(config, str(base_folder), tmp_path / "a.safetensors", 3, "fp16")
    tensors = load_file(file)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == names.motion_module(POCKET, 32, layers=1)
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    assert all(tensor.count_nonzero() == 0 for name, tensor in tensors.items() if ".proj_out." in name)
    assert all(tensor.count_nonzero() > 0 for name, tensor in tensors.items() if name.endswith("to_q.weight"))
    again = export_fresh(
        MotionModuleConfig(preset="from-base"), str(base_folder), tmp_path / "b.safetensors", 3, "fp16"
    )
    assert again.read_bytes() == file.read_bytes()
    with pytest.raises(UserError, match="Known by name: sd15, sdxl"):
        export_fresh(MotionModuleConfig(preset="v3"), "sd16", tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="Preset v3 is for a base model of widths"):
        export_fresh(MotionModuleConfig(preset="v3"), str(base_folder), tmp_path / "c.safetensors")


def test_every_file_says_what_it_is(trained: dict[str, Path]) -> None:
    expected = {"base_model": "tiny", "preset": "from-base", "group_norm": "per_frame", "max_frames": "32"}
    for kind, file in (
        ("motion-module", trained["motion-module"] / "original" / "motion_module.safetensors"),
        ("motion-lora", trained["motion-lora"] / "motion_lora.safetensors"),
        ("domain-adapter", trained["domain-adapter"] / "domain_adapter.safetensors"),
    ):
        metadata = metadata_of(file)
        notes = {name.removeprefix("animateflow."): value for name, value in metadata.items()}
        of_kind = {"base_model": "tiny"} if kind == "domain-adapter" else expected
        assert of_kind.items() <= notes.items()
        assert notes["stage"] == kind
        assert notes["beta_schedule"] == "linear"
        assert len(notes["recipe_fingerprint"]) == 64
        assert kind == "motion-module" or notes["rank"] == notes["alpha"] == "4"
        for field in ("sai_model_spec", "architecture", "implementation", "title", "description"):
            assert metadata[f"modelspec.{field}"]
        raw = file.read_bytes()
        data = raw[8 + int.from_bytes(raw[:8], "little") :]
        assert metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data).hexdigest()}"


def test_describe(trained: dict[str, Path]) -> None:
    module = describe(trained["motion-module"])
    assert (module["kind"], module["format"], module["preset"]) == ("motion-module", "diffusers", "from-base")
    assert (
        module["parameters"]
        == json.loads((trained["motion-module"] / "record.json").read_text())["counts"]["trainable_parameters"]
    )
    assert module["metadata"]["animateflow.group_norm"] == "per_frame"
    lora_file = describe(trained["motion-lora"] / "original" / "motion_lora.safetensors")
    assert (lora_file["kind"], lora_file["format"], lora_file["rank"]) == ("motion-lora", "original", 4)
    assert describe(trained["domain-adapter"])["kind"] == "domain-adapter"


def test_a_flipped_bit_is_found_by_the_hash(trained: dict[str, Path], tmp_path: Path) -> None:
    raw = bytearray((trained["motion-lora"] / "motion_lora.safetensors").read_bytes())
    (tmp_path / "a.safetensors").write_bytes(raw)
    assert describe(tmp_path / "a.safetensors", hashes=True)["sha256"]
    raw[-1000] ^= 1
    (tmp_path / "a.safetensors").write_bytes(raw)
    describe(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="its maker noted"):
        describe(tmp_path / "a.safetensors", hashes=True)


def test_exporting_what_has_no_original_format(tmp_path: Path, base_folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="a file of unknown kind"):
        export_original(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    config = MotionModuleConfig(preset="from-base", network="temporal-convolution")
    adapter = fresh_motion_adapter(config, formats.base_shape(str(base_folder)))
    motion_files.save_motion_module(tmp_path / "mm", adapter, formats.motion_notes(config))
    with pytest.raises(UserError, match="temporal convolutions"):
        export_original(tmp_path / "mm", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_values_that_overflow_fp16_are_refused(tmp_path: Path) -> None:
    tensors = original("motion-lora")
    tensors[next(iter(tensors))][0, 0] = 1e6
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="fp16 cannot hold"):
        export_original(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "fp16")
    export_original(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "bf16")
    assert describe(tmp_path / "b.safetensors")["dtypes"] == ["BF16"]
