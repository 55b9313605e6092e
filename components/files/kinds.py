"""What a weight file is, from its tensors' names and shapes: ours, and those that people mix up with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from infra.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
DType = Literal["fp32", "fp16", "bf16"]
"""What weights can be converted to."""

KINDS = {
    "motion-module": "a motion module",
    "motion-lora": "a MotionLoRA",
    "domain-adapter": "a domain adapter",
    "kohya-lora": "a LoRA of an image model (kohya format)",
    "sdxl-lora": "a LoRA of SDXL",
    "sd2-lora": "a LoRA of Stable Diffusion 2",
    "loha": "a LoHa (LyCORIS, Hadamard products)",
    "lokr": "a LoKr (LyCORIS, Kronecker products)",
    "locon-mid": "a LoCon with lora_mid tensors (LyCORIS, Tucker decomposition)",
    "dora": "a DoRA (LoRA with dora_scale)",
    "lycoris": "a LyCORIS file of another algorithm",
    "checkpoint": "a whole Stable Diffusion 1.x model",
    "inpainting-checkpoint": "a whole inpainting model",
    "pix2pix-checkpoint": "a whole model that edits images",
    "sd2-checkpoint": "a whole Stable Diffusion 2 model",
    "sdxl-checkpoint": "a whole SDXL model",
    "textual-inversion": "a textual-inversion embedding",
    "sdxl-textual-inversion": "a textual-inversion embedding of SDXL",
    "controlnet": "a ControlNet",
    "sparsectrl": "a SparseCtrl encoder",
    "pia": "a motion module of PIA, which takes a picture as more input",
    "hotshot-xl": "a motion module of Hotshot-XL",
    "unet": "the UNet of a diffusers folder",
    "vae": "a VAE",
    "unknown": "a file of unknown kind",
}
OURS = ("motion-module", "motion-lora", "domain-adapter")
OPTIONS = {
    "motion-module": "Pass it as --motion-module.",
    "motion-lora": "Pass it as --motion-lora.",
    "domain-adapter": "Pass it as --domain-adapter.",
    "kohya-lora": "Pass it as --lora, a LoRA of the base model.",
    "checkpoint": "Pass it as --base, the base model.",
    "textual-inversion": "Pass it as --embedding.",
    "controlnet": "Pass the ControlNet's diffusers folder as --controlnet.",
}
MEANINGS = {
    "motion-module": "A motion module is all temporal layers of a video model.",
    "motion-lora": "A MotionLoRA changes the temporal layers of a motion module, nothing else.",
    "domain-adapter": "A domain adapter changes the image layers, and is not trained on motion.",
    "sdxl-lora": "SDXL has other layers than Stable Diffusion 1.x; its LoRAs fit no SD 1.x model.",
    "sd2-lora": "Stable Diffusion 2 has another text encoder than 1.x; its LoRAs fit no SD 1.x model.",
    "loha": "LoHa is not supported: only plain LoRA (lora_down, lora_up, alpha) is.",
    "lokr": "LoKr is not supported: only plain LoRA (lora_down, lora_up, alpha) is.",
    "locon-mid": "lora_mid is not supported: only plain LoRA and LoCon (lora_down, lora_up, alpha) are.",
    "dora": "DoRA is not supported: only plain LoRA (lora_down, lora_up, alpha) is.",
    "lycoris": "Only plain LoRA (lora_down, lora_up, alpha) is supported.",
    "pia": "Its first layer takes nine channels; without it the rest would not do what it was trained for.",
    "hotshot-xl": "It has other temporal layers than AnimateDiff.",
    "sparsectrl": "It steers a motion module by single frames, which is not supported.",
    "inpainting-checkpoint": "Its UNet takes a mask and a masked picture as more input; motion modules take neither.",
    "pix2pix-checkpoint": "Its UNet takes a picture as more input; motion modules were not trained with one.",
    "sd2-checkpoint": "Motion modules of SD 1.5 fit its sizes and not its features: frames would be noise.",
    "sdxl-checkpoint": "Motion modules of SD 1.5 do not fit it.",
}
# Names by which an algorithm of LyCORIS is told, first match first.
_LYCORIS = {
    r"\.hada_w[12]": "loha",
    r"\.lokr_w[12]": "lokr",
    r"\.lora_mid\.weight$": "locon-mid",
    r"\.dora_scale$": "dora",
    r"\.(diff|diff_b|on_input|w_norm|b_norm|a1\.weight)$|\.oft_": "lycoris",
}
_CROSS_WIDTHS = {1024: "sd2", 2048: "sdxl"}


def wrong_kind(path: object, found: str, wanted: str) -> UserError:
    """The error for weights of one kind given where another is needed, a key of `KINDS`; `found` may be an artifact of
    no weights."""
    return UserError(
        f"{path} is {KINDS.get(found, f'a {found}')}, not {KINDS[wanted]}.",
        MEANINGS.get(found, ""),
        OPTIONS.get(found, f"Pass {KINDS[wanted]}."),
    )


def kind_of(shapes: Shapes) -> str:
    """A key of `KINDS`."""
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
        if cross and len(shape) >= 2 and shape[1] in _CROSS_WIDTHS:
            return f"{_CROSS_WIDTHS[shape[1]]}-lora"
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
    """A1111's `emb_params` or `string_to_param`, or diffusers' one tensor under the token's name."""
    if {"clip_l", "clip_g"} & shapes.keys():
        return "sdxl-textual-inversion"
    names = [name for name in shapes if name == "emb_params" or name.startswith("string_to_param.")]
    single = len(shapes) == 1 and "." not in next(iter(shapes))
    shape = shapes[names[0]] if len(names) == 1 else next(iter(shapes.values())) if single else ()
    return "textual-inversion" if 1 <= len(shape) <= 2 and shape[-1] >= 64 else "unknown"
