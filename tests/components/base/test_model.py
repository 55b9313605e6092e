from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.base.model import BaseModel, LoraFile, fingerprint_of, load_base, vae_sha256
from infra.pocket.personalised import save_single_file
from tests.components.base.test_loras_and_embeddings import kohya, refused


def test_a_folder_is_loaded_in_fp32_frozen(base: BaseModel, base_folder: Path) -> None:
    pipeline = load_base(base)
    expected = load_file(base_folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(pipeline.unet.state_dict()[name], tensor) for name, tensor in expected.items())
    assert pipeline.safety_checker is None
    assert not any(parameter.requires_grad for parameter in pipeline.unet.parameters())


def test_a_single_file_holds_the_same_model(base: BaseModel, base_folder: Path, tmp_path: Path) -> None:
    plain = load_base(base)
    save_single_file(plain, tmp_path / "ink.safetensors")
    single = load_base(BaseModel(path=tmp_path / "ink.safetensors", reference=base_folder))
    for part in ("unet", "vae", "text_encoder"):
        expected, found = getattr(plain, part).state_dict(), getattr(single, part).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], tensor.half().float()) for name, tensor in expected.items()), part
    assert vae_sha256(single.vae) == vae_sha256(plain.vae)
    assert single.tokenizer("a red circle")["input_ids"] == plain.tokenizer("a red circle")["input_ids"]
    assert single.scheduler.config.beta_schedule == "linear"


def test_the_vae_s_hash_is_of_its_weights(pipeline: Any) -> None:
    before = vae_sha256(pipeline.vae)
    assert vae_sha256(pipeline.vae.half().float()) == before
    with torch.no_grad():
        next(pipeline.vae.parameters())[0] += 0.1
    assert vae_sha256(pipeline.vae) != before


def test_what_is_not_a_base_model_is_named(trained: dict[str, Path], tmp_path: Path) -> None:
    assert "does not exist" in refused(BaseModel(path=tmp_path / "nowhere"))
    assert "has no model_index.json" in refused(BaseModel(path=tmp_path))
    assert "is a motion-module" in refused(BaseModel(path=trained["motion-module"]))
    lora = trained["motion-lora"] / "motion_lora.safetensors"
    assert "is a MotionLoRA" in refused(BaseModel(path=lora))
    (tmp_path / "page.safetensors").write_text("<html>please log in</html>")
    assert "is a web page" in refused(BaseModel(path=tmp_path / "page.safetensors"))
    (tmp_path / "old.ckpt").write_bytes(b"PK\x03\x04")
    assert "is a pickle that cannot be read safely" in refused(BaseModel(path=tmp_path / "old.ckpt"))


def test_models_of_other_kinds_are_refused(base_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(base_folder, tmp_path / "xl")
    index = tmp_path / "xl" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "StableDiffusionXLPipeline"}))
    assert "is a model for StableDiffusionXLPipeline" in refused(BaseModel(path=tmp_path / "xl"))
    shutil.copytree(base_folder, tmp_path / "v")
    scheduler = tmp_path / "v" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "sample"}))
    assert "predicts sample. Only models that predict noise" in refused(BaseModel(path=tmp_path / "v"))
    for name, changes, says in (
        ("inpainting", {"in_channels": 9}, "has a UNet with 9 input channels. That is an inpainting"),
        ("two", {"cross_attention_dim": 1024}, "is a Stable Diffusion 2 checkpoint (text width 1024)"),
    ):
        shutil.copytree(base_folder, tmp_path / name)
        unet = tmp_path / name / "unet" / "config.json"
        unet.write_text(json.dumps(json.loads(unet.read_text()) | changes))
        assert says in refused(BaseModel(path=tmp_path / name))
    shutil.copytree(base_folder, tmp_path / "part")
    (tmp_path / "part" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "could not be loaded as a base model" in refused(BaseModel(path=tmp_path / "part"))


def test_a_hub_model_without_network_fails_fast(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    started = time.monotonic()
    assert "no network for a hub model" in refused(BaseModel(path=Path("nobody/such-a-model")))
    assert "no network for a hub model" in refused(BaseModel(path=Path("nobody/model-v1.5")))
    save_single_file(load_base(base), tmp_path / "ink.safetensors")
    message = refused(BaseModel(path=tmp_path / "ink.safetensors"))
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5" in message
    assert "reference" in message
    assert time.monotonic() - started < 20


def test_the_fingerprint_is_of_content(base: BaseModel, base_folder: Path, tmp_path: Path) -> None:
    kohya(tmp_path / "neon.safetensors")
    shutil.copytree(base_folder, tmp_path / "tiny")
    assert fingerprint_of(BaseModel(path=tmp_path / "tiny")) == fingerprint_of(base)
    strengths = [
        fingerprint_of(BaseModel(path=base_folder, loras=(LoraFile(path=tmp_path / "neon.safetensors", scale=scale),)))
        for scale in (0.5, 1.0)
    ]
    assert len({*(given.fingerprint for given in strengths), fingerprint_of(base).fingerprint}) == 3


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
CROSS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("shapes", "says", "then"),
    [
        ({FIRST: (32, 9, 3, 3)}, "is an inpainting checkpoint", "also takes a mask and a masked image"),
        ({FIRST: (32, 4, 3, 3), CROSS: (32, 1024)}, "is a Stable Diffusion 2 checkpoint", "fit its sizes but not"),
        ({FIRST: (32, 4, 3, 3), CROSS: (32, 2048)}, "is an SDXL checkpoint", "do not fit it"),
    ],
)
def test_checkpoints_of_other_families_are_named(
    shapes: dict[str, tuple[int, ...]], says: str, then: str, tmp_path: Path, base_folder: Path
) -> None:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "a.safetensors")
    message = refused(BaseModel(path=tmp_path / "a.safetensors", reference=base_folder))
    assert says in message
    assert then in message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_model_is_whole_or_refused(part: str, base: BaseModel, base_folder: Path, tmp_path: Path) -> None:
    """diffusers loads both with a line in the log, or with a tensor that has no memory."""
    prefix = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}[part]
    save_single_file(load_base(base), tmp_path / "a.safetensors")
    whole = load_file(tmp_path / "a.safetensors")
    gone = [name for name in whole if name.startswith(prefix)][7]
    broken = BaseModel(path=tmp_path / "b.safetensors", reference=base_folder)
    for tensors, says in (
        ({name: tensor for name, tensor in whole.items() if name != gone}, "is missing"),
        (
            {name: tensor for name, tensor in whole.items() if not name.startswith(prefix)},
            "is a VAE" if part == "unet" else "holds no",
        ),
        ({**whole, gone: torch.zeros(5)}, "not ("),
    ):
        save_file(tensors, tmp_path / "b.safetensors")
        assert says in refused(broken)

    shutil.copytree(base_folder, tmp_path / "folder")
    file = next((tmp_path / "folder" / part).glob("*.safetensors"))
    tensors = load_file(file)
    for changed, says in (
        (dict(list(tensors.items())[1:]), "is missing"),
        ({**tensors, "strange": torch.zeros(2)}, "strange is unknown"),
    ):
        save_file(changed, file, {"format": "pt"})
        assert says in refused(BaseModel(path=tmp_path / "folder"))
    file.write_text("<html>")
    assert "is a web page" in refused(BaseModel(path=tmp_path / "folder"))


def test_a_checkpoint_in_a_pickle_of_tensors_is_loaded(base: BaseModel, base_folder: Path, tmp_path: Path) -> None:
    save_single_file(load_base(base), tmp_path / "a.safetensors")
    torch.save({"state_dict": load_file(tmp_path / "a.safetensors"), "epoch": 1}, tmp_path / "a.ckpt")
    found, expected = (
        load_base(BaseModel(path=tmp_path / name, reference=base_folder)).unet.state_dict()
        for name in ("a.ckpt", "a.safetensors")
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
