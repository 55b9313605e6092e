"""The kind of a weight file (motion module, LoRA, checkpoint, …), inferred from the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from infra.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
DType = Literal["fp32", "fp16", "bf16"]
"""The dtypes that weights can be converted to."""
Program = Literal["comfyui", "a1111", "official", "diffusers"]
"""Programs that read our weights, each in its own form."""

KINDS = {
    "motion-module": "a motion module",
    "motion-lora": "a MotionLoRA",
    "domain-adapter": "a domain adapter",
    "kohya-lora": "a LoRA of an image model (kohya format)",
    "sdxl-lora": "an SDXL LoRA",
    "sd2-lora": "a Stable Diffusion 2 LoRA",
    "loha": "a LoHa (LyCORIS, Hadamard products)",
    "lokr": "a LoKr (LyCORIS, Kronecker products)",
    "locon-mid": "a LoCon with lora_mid tensors (LyCORIS, Tucker decomposition)",
    "dora": "a DoRA (LoRA with dora_scale)",
    "lycoris": "a LyCORIS file of another algorithm",
    "checkpoint": "a Stable Diffusion 1.x checkpoint",
    "inpainting-checkpoint": "an inpainting checkpoint",
    "pix2pix-checkpoint": "an InstructPix2Pix checkpoint",
    "sd2-checkpoint": "a Stable Diffusion 2 checkpoint",
    "sdxl-checkpoint": "an SDXL checkpoint",
    "textual-inversion": "a textual-inversion embedding",
    "sdxl-textual-inversion": "an SDXL textual-inversion embedding",
    "controlnet": "a ControlNet",
    "sparsectrl": "a SparseCtrl encoder",
    "pia": "a motion module of PIA (image-conditioned)",
    "hotshot-xl": "a motion module of Hotshot-XL",
    "unet": "the UNet of a diffusers folder",
    "vae": "a VAE",
    "unknown": "a file of unknown kind",
}
"""Kind to what it is called in messages."""
ANIMATEDIFF_KINDS = ("motion-module", "motion-lora", "domain-adapter")
"""The kinds that this project trains."""
OPTION_HINTS = {
    "motion-module": "Pass it as --motion-module.",
    "motion-lora": "Pass it as --motion-lora.",
    "domain-adapter": "Pass it as --domain-adapter.",
    "kohya-lora": "Pass it as --lora, a LoRA of the base model.",
    "checkpoint": "Pass it as --base, the base model.",
    "textual-inversion": "Pass it as --embedding.",
    "controlnet": "Pass the ControlNet's diffusers folder as --controlnet.",
}
"""Kind to the command-line option that takes it."""
EXPLANATIONS = {
    "motion-module": "A motion module holds all temporal layers of a video model.",
    "motion-lora": "A MotionLoRA changes the temporal layers of a motion module only.",
    "domain-adapter": "A domain adapter changes the image layers only and is not trained on motion.",
    "sdxl-lora": "SDXL has other layers than Stable Diffusion 1.x. Its LoRAs fit no SD 1.x model.",
    "sd2-lora": "Stable Diffusion 2 has another text encoder than 1.x. Its LoRAs fit no SD 1.x model.",
    "loha": "LoHa is not supported. Only plain LoRA (lora_down, lora_up, alpha) is.",
    "lokr": "LoKr is not supported. Only plain LoRA (lora_down, lora_up, alpha) is.",
    "locon-mid": "lora_mid is not supported. Only plain LoRA and LoCon (lora_down, lora_up, alpha) are.",
    "dora": "DoRA is not supported. Only plain LoRA (lora_down, lora_up, alpha) is.",
    "lycoris": "Only plain LoRA (lora_down, lora_up, alpha) is supported.",
    "pia": "It needs a UNet whose first layer takes nine input channels.",
    "hotshot-xl": "It has other temporal layers than AnimateDiff.",
    "sparsectrl": "SparseCtrl is not supported.",
    "inpainting-checkpoint": "Its UNet also takes a mask and a masked image. Motion modules were trained without them.",
    "pix2pix-checkpoint": "Its UNet also takes an image. Motion modules were trained without one.",
    "sd2-checkpoint": "SD 1.5 motion modules fit its sizes but not its features, so the frames would be noise.",
    "sdxl-checkpoint": "SD 1.5 motion modules do not fit it.",
}
"""Kind to why it is not what was asked for."""
# Patterns of tensor names to LyCORIS algorithms; the first match counts.
_LYCORIS = {
    r"\.hada_w[12]": "loha",
    r"\.lokr_w[12]": "lokr",
    r"\.lora_mid\.weight$": "locon-mid",
    r"\.dora_scale$": "dora",
    r"\.(diff|diff_b|on_input|w_norm|b_norm|a1\.weight)$|\.oft_": "lycoris",
}
_CROSS_ATTENTION_DIMS = {1024: "sd2", 2048: "sdxl"}


def wrong_kind_error(path: object, found: str, wanted: str) -> UserError:
    """The error for weights of kind `found` where kind `wanted` is needed. `found` may also be the kind of an artifact
    that holds no weights."""
    return UserError(
        f"{path} is {KINDS.get(found, f'a {found}')}, not {KINDS[wanted]}.",
        EXPLANATIONS.get(found, ""),
        OPTION_HINTS.get(found, f"Pass {KINDS[wanted]}."),
    )


def infer_kind(shapes: Shapes) -> str:
    """The kind of a file with tensors of these shapes by name: a key of `KINDS`."""
    names = list(shapes)

    def has(*parts: str) -> bool:
        return any(part in name for name in names for part in parts)

    for pattern, kind in _LYCORIS.items():
        if any(re.search(pattern, name) for name in names):
            return kind
    if any(name.startswith(("lora_unet_", "lora_te")) for name in names):
        return _kohya_kind(shapes)
    low_rank = has("lora_A", "lora_B", "lora_down", "lora_up", "_lora.down", "_lora.up", ".lora.down", ".lora.up")
    if any(name.startswith(("model.diffusion_model.", "cond_stage_model.", "first_stage_model.")) for name in names):
        return _checkpoint_kind(shapes)
    if has("motion_modules."):
        if has("controlnet_cond_embedding.", "controlnet_down_blocks."):
            return "sparsectrl"
        if shapes.get("conv_in.weight", (0, 4))[1:2] != (4,):
            return "pia"
        return "motion-lora" if low_rank else "motion-module"
    if has("temporal_attentions."):
        return "hotshot-xl"
    if low_rank and has(".attentions."):
        return "domain-adapter"
    if has("controlnet_cond_embedding.", "control_model.", "controlnet_down_blocks."):
        return "controlnet"
    if has("down_blocks.0.resnets.") and has("time_embedding."):
        return "unet"
    if has("encoder.conv_in.") and has("decoder.conv_in."):
        return "vae"
    return _embedding_kind(shapes)


def _kohya_kind(shapes: Shapes) -> str:
    for name, shape in shapes.items():
        if name.startswith(("lora_te1_", "lora_te2_")) or re.match(r"lora_unet_(in|out)put_blocks_", name):
            return "sdxl-lora"
        if name.startswith("lora_te_text_model_encoder_layers_") and len(shape) == 2 and 1024 in shape[:2]:
            return "sd2-lora"
        cross = re.search(r"attn2_to_[kv]\.lora_down\.weight$", name)
        if cross and len(shape) >= 2 and shape[1] in _CROSS_ATTENTION_DIMS:
            return f"{_CROSS_ATTENTION_DIMS[shape[1]]}-lora"
    return "kohya-lora"


def _checkpoint_kind(shapes: Shapes) -> str:
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight", ())
    cross = [shape[1] for name, shape in shapes.items() if ".attn2.to_k.weight" in name and len(shape) == 2]
    if any(name.startswith("conditioner.embedders.1.") for name in shapes) or 2048 in cross:
        return "sdxl-checkpoint"
    if len(first) > 1 and first[1] in (8, 9):
        return "inpainting-checkpoint" if first[1] == 9 else "pix2pix-checkpoint"
    if any(name.startswith("cond_stage_model.model.") for name in shapes) or 1024 in cross:
        return "sd2-checkpoint"
    return "checkpoint" if first else ("vae" if any("decoder.conv_in." in name for name in shapes) else "unknown")


def _embedding_kind(shapes: Shapes) -> str:
    """An embedding holds A1111's `emb_params` or `string_to_param`, or one tensor named after the token (diffusers)."""
    if {"clip_l", "clip_g"} & shapes.keys():
        return "sdxl-textual-inversion"
    names = [name for name in shapes if name == "emb_params" or name.startswith("string_to_param.")]
    if not names and len(shapes) == 1:
        names = [name for name in shapes if "." not in name]
    shape = shapes[names[0]] if len(names) == 1 else ()
    return "textual-inversion" if 1 <= len(shape) <= 2 and shape[-1] >= 64 else "unknown"
