"""A small open_clip model that knows the pocket world, so that CLIP scores mean something there.

Written as an open_clip `local-dir:` folder: `open_clip_config.json`, `open_clip_model.safetensors` and the tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from infra.artifacts.sealing import write_json
from infra.pocket.clips import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, every_prompt
from infra.pocket.image_model import PICTURE_SIZE, TEXT_LENGTH, fit, stills, to_pixels, tokenize
from infra.video import UInt8

if TYPE_CHECKING:
    from open_clip import CLIP
    from transformers import CLIPTokenizer

PREFIXES = {
    "plain": "a picture of ",
    "ink": "an ink drawing of ",
    "neon": "a neon sign of ",
    "stock": "stock footage of ",
}


def model_config(vocabulary: int) -> dict[str, Any]:
    """The `model_cfg` of open_clip: ViT with 8-pixel patches, two text layers."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": PICTURE_SIZE, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
        "text_cfg": {
            "context_length": TEXT_LENGTH,
            "vocab_size": vocabulary,
            "hf_tokenizer_name": ".",
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def train_clip(
    tokenizer: CLIPTokenizer, steps: int, seed: int, per_look: int = 4000, device: str | torch.device = "cpu"
) -> CLIP:
    """Contrastive training over all looks of the world; half of the captions name the look before the scene.

    Motion words cannot be seen in a still: they are replaced by a random one at every draw, so that the image tower
    is not asked for them and the text tower learns to ignore them.
    """
    from open_clip import CLIP

    torch.manual_seed(seed)
    model = CLIP(**model_config(len(tokenizer)), output_dict=True).to(device)
    pictures, captions, looks = _all_looks(per_look, seed)
    motions = list(MOTIONS)
    prefixes = np.array(list(PREFIXES.values()))
    scenes = np.array([_with_motion(caption, "") for caption in captions])
    choose = np.random.default_rng(seed)

    def loss() -> Tensor:
        chosen = choose.integers(len(captions), size=96)
        named = choose.random(96) < 0.5
        texts = [
            (prefixes[looks[index]] if name else "") + _with_motion(captions[index], motions[choose.integers(5)])
            for index, name in zip(chosen, named, strict=True)
        ]
        seen = _jitter(to_pixels(pictures[chosen]), choose).to(device)
        out = model(seen, tokenize(tokenizer, texts).to(device))
        logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
        # Picture i fits text j if the scene is the same and the text names its look or none.
        fits = (scenes[chosen][:, None] == scenes[chosen]) & ((looks[chosen][:, None] == looks[chosen]) | ~named)
        match = torch.from_numpy(fits).float().to(device)
        by_picture = F.cross_entropy(logits, match / match.sum(dim=1, keepdim=True))
        by_text = F.cross_entropy(logits.T, match.T / match.T.sum(dim=1, keepdim=True))
        return (by_picture + by_text) / 2

    fit("pocket CLIP", [model], loss, steps, learning_rate=1e-3)
    return model


def save_clip(model: CLIP, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes the folder that `open_clip.create_model_and_transforms("local-dir:...")` reads, weights in fp16."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    half = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(half, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    config = {
        "model_cfg": model_config(len(tokenizer)),
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
    write_json(folder / "open_clip_config.json", config)


@torch.no_grad()
def judge(model: CLIP, tokenizer: CLIPTokenizer, pictures_BCHW: Tensor, captions: list[str]) -> dict[str, float]:
    """Share of pictures whose shape, colour and background the model reads as captioned; chance is 1/4, 1/5, 1/4."""
    device = next(model.parameters()).device
    features = model.encode_image(pictures_BCHW.to(device), normalize=True)
    prompts = every_prompt()
    text = model.encode_text(tokenize(tokenizer, prompts).to(device), normalize=True)
    best = [prompts[int(index)].split() for index in (features @ text.T).argmax(dim=1)]
    wanted = [caption.split() for caption in captions]
    score = {}
    for name, words in (("shape", SHAPES), ("colour", tuple(COLOURS)), ("background", BACKGROUNDS)):
        hits = [set(a) & set(words) == set(b) & set(words) for a, b in zip(best, wanted, strict=True)]
        score[name] = float(np.mean(hits))
    return score


def _all_looks(per_look: int, seed: int) -> tuple[UInt8, list[str], NDArray[np.int64]]:
    """Pictures of every look, their captions, and the index of each one's look."""
    parts = []
    for offset, look in enumerate(PREFIXES):
        domain, style = ("stock", "plain") if look == "stock" else ("clean", look)
        parts.append(stills(per_look, seed + 10 + offset, domain, style))
    captions = [caption for part in parts for caption in part[1]]
    return np.concatenate([part[0] for part in parts]), captions, np.repeat(np.arange(len(parts)), per_look)


def _with_motion(caption: str, motion: str) -> str:
    for known in MOTIONS:
        caption = caption.replace(known, motion)
    return caption


def _jitter(pixels: Tensor, choose: np.random.Generator) -> Tensor:
    """Blur, noise and brightness at random, for generated pictures are not as crisp as drawn ones."""
    if choose.random() < 0.5:
        pixels = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2.0, mode="bilinear")
    noise = torch.from_numpy(choose.standard_normal(pixels.shape, dtype=np.float32))
    level = torch.from_numpy(choose.uniform(0, 0.2, (len(pixels), 1, 1, 1)).astype(np.float32))
    shift = torch.from_numpy(choose.uniform(-0.15, 0.15, (len(pixels), 1, 1, 1)).astype(np.float32))
    return pixels + level * noise + shift
