"""The two shared forms of a personalised model load elsewhere with the values that were written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.pocket.build import WEIGHTS
from infra.pocket.personalised import LORA_ALPHA, LORA_RANK, LORA_TARGETS, save_single_file, to_kohya


@pytest.fixture
def pipeline():
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(WEIGHTS / "base", dtype=torch.float32, safety_checker=None)


def test_diffusers_reads_the_single_file_with_exact_values(pipeline, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    save_single_file(pipeline, tmp_path / "model.safetensors")
    read = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "model.safetensors"), config=str(WEIGHTS / "base"), local_files_only=True, safety_checker=None
    )
    for part in ("unet", "vae", "text_encoder"):
        written, again = getattr(pipeline, part).state_dict(), getattr(read, part).state_dict()
        assert written.keys() == again.keys()
        assert all(torch.equal(written[name].half(), again[name].half()) for name in written)


def test_kohya_names_and_alpha_mean_what_readers_take_them_for(pipeline, tmp_path: Path) -> None:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    pipeline.unet.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=LORA_TARGETS))
    state = {name: torch.randn_like(value) * 0.1 for name, value in get_peft_model_state_dict(pipeline.unet).items()}
    pipeline.unet.delete_adapters("default")
    save_file(to_kohya(state), tmp_path / "style.safetensors")
    tensors = load_file(tmp_path / "style.safetensors")
    assert all(float(value) == LORA_ALPHA for name, value in tensors.items() if name.endswith(".alpha"))

    pipeline.load_lora_weights(tmp_path / "style.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    key = "lora_unet_" + name.replace(".", "_")
    down, up = (tensors[f"{key}.lora_{side}.weight"].float() for side in ("down", "up"))
    by_hand = before[f"{name}.weight"] + LORA_ALPHA / LORA_RANK * up @ down
    assert torch.allclose(pipeline.unet.state_dict()[f"{name}.weight"], by_hand, atol=1e-5)
