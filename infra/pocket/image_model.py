"""The pocket base model: a Stable Diffusion 1.5-shaped text-to-image pipeline, trained from nothing on clean stills.

B batch, C channels, H W pixels, h w latents (h = H/4). Pixels float -1..1, latents scaled to unit variance.
The image model learns under the linear beta schedule, the one of the video stages, so that a fresh motion module
starts from a model that already knows its noise levels.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from infra.pocket.clips import every_prompt, random_scenes, render
from infra.video import UInt8

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTokenizer

PICTURE_SIZE = 64
TEXT_WIDTH = 128
TEXT_LENGTH = 32
CAPTION_DROPOUT = 0.1

# Words of ordinary stock-footage captions, so that the tokenizer reads a caption from outside the world as words.
CAPTION_WORDS = (
    "the of and in with at by to from near over under behind next other through around into view aerial man woman "
    "person people child hand face walking running driving flying crawling opening lifted taking sign language gesture "
    "office building road highway car cars parking lot city street beach sea ocean cliff sky clouds mountain forest "
    "tree trees leaves flower bud bloom beetle insect animal dog cat bird plastic bottle bottles shelf table kitchen "
    "concrete path bushes structure satellite worker hall dark sunny empty large small gold grey green black orange "
    "brown sweater three two sunset night day time lapse slow motion close up background camera zoom pan drone"
)


def build_tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer with merges learnt on the world's captions; the end token has the highest id.

    open_clip pools the text tower at the highest id, hence the order.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    learner = CLIPTokenizer()._tokenizer
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=2048, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False, min_frequency=1
    )
    learner.train_from_iterator([*every_prompt(), CAPTION_WORDS], trainer)
    learnt = json.loads(learner.to_str())["model"]
    tokens = list(dict.fromkeys([*alphabet, *(byte + "</w>" for byte in alphabet), *learnt["vocab"]]))
    tokens = [token for token in tokens if not token.startswith("<|")]
    vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    merges = [tuple(pair) for pair in learnt["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids (B, L), padded with the end token to the model's length, as Stable Diffusion pads."""
    batch = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
    return torch.as_tensor(batch["input_ids"])


def stills(count: int, seed: int, domain: str = "clean", style: str = "plain") -> tuple[UInt8, list[str]]:
    """Pictures (N, H, W, 3) uint8 and their captions."""
    scenes = list(random_scenes(count, seed, domain, style))
    return np.concatenate([render(scene, 1, PICTURE_SIZE) for scene in scenes]), [scene.caption for scene in scenes]


def to_pixels(pictures: UInt8) -> Tensor:
    """uint8 (B, H, W, 3) to float -1..1 (B, 3, H, W)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(steps: int, seed: int, device: str | torch.device = "cpu", share: float = 1.0) -> AutoencoderKL:
    """AutoencoderKL, 4 latent channels at a quarter of the size; learns a `share` of the world and other pictures."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=PICTURE_SIZE,
    ).to(device)
    clean, stock, styled, unrelated = (max(1, round(share * count)) for count in (1500, 1000, 400, 2500))
    parts = [stills(clean, seed), stills(stock, seed + 1, "stock"), stills(styled, seed, style="ink")]
    parts.append(stills(styled, seed, style="neon"))
    pictures = np.concatenate([*(part[0] for part in parts), _unrelated_pictures(unrelated, seed)])
    choose = np.random.default_rng(seed)

    def loss(edges: float, colour: float) -> Tensor:
        pixels = to_pixels(pictures[choose.integers(len(pictures), size=16)]).to(device)
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        slopes = sum(F.l1_loss(decoded.diff(dim=axis), pixels.diff(dim=axis)) for axis in (-1, -2))
        means = F.l1_loss(F.avg_pool2d(decoded, 4), F.avg_pool2d(pixels, 4))
        total: Tensor = (
            F.l1_loss(decoded, pixels) + edges * slopes + colour * means + 1e-5 * posterior.kl().mean() / 1024
        )
        return total

    # Edges first, then colour: with the edge term alone four channels spend themselves on brightness.
    fit("pocket VAE, edges", [vae], lambda: loss(0.5, 0.0), steps * 11 // 20, learning_rate=2e-3)
    fit("pocket VAE, colour", [vae], lambda: loss(0.2, 2.0), steps - steps * 11 // 20, learning_rate=2e-3)
    with torch.no_grad():
        latents = vae.encode(to_pixels(pictures[::20]).to(device)).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return vae.eval()


def train_base(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, steps: int, seed: int, stills_count: int = 32_768
) -> StableDiffusionPipeline:
    """Trains text encoder and UNet together on clean stills (epsilon-prediction, min-SNR 5, caption dropout 0.1)."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=PICTURE_SIZE // 4,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(vae.device)
    pictures, captions = stills(stills_count, seed)
    loss = image_loss(pipeline, encode(vae, pictures), captions, seed)
    fit("pocket base model", [unet, text_encoder], loss, steps, learning_rate=1e-3, horizon=1.3)
    return pipeline


def scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="linspace",
    )


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: UInt8) -> Tensor:
    """Posterior means times the scaling factor, (N, 4, h, w)."""
    parts = [to_pixels(pictures[first : first + 256]).to(vae.device) for first in range(0, len(pictures), 256)]
    chunks = [vae.encode(part).latent_dist.mean for part in parts]
    scaling_factor: float = vae.config.scaling_factor
    return torch.cat(chunks) * scaling_factor


def image_loss(
    pipeline: StableDiffusionPipeline, latents: Tensor, captions: Sequence[str], seed: int, batch: int = 32
) -> Callable[[], Tensor]:
    """The denoising loss of one random batch: epsilon-MSE weighted by min(SNR, 5)/SNR (Hang et al. 2023, eq. 8)."""
    device = pipeline.unet.device
    tokens = tokenize(pipeline.tokenizer, captions)
    empty = tokenize(pipeline.tokenizer, [""])
    alpha_bar = pipeline.scheduler.alphas_cumprod
    snr = alpha_bar / (1 - alpha_bar)
    weight: Tensor = snr.clamp(max=5) / snr
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        chosen = torch.randint(len(latents), (batch,), generator=generator)
        z_0 = latents[chosen]
        t = torch.randint(len(alpha_bar), (batch,), generator=generator)
        eps = torch.randn(z_0.shape, generator=generator).to(device)
        drop = torch.rand(batch, generator=generator) < CAPTION_DROPOUT
        ids = torch.where(drop[:, None], empty, tokens[chosen])
        text = pipeline.text_encoder(ids.to(device)).last_hidden_state
        z_t = pipeline.scheduler.add_noise(z_0, eps, t)
        predicted: Tensor = pipeline.unet(z_t, t.to(device), text).sample
        return (weight[t].to(device) * (predicted - eps).square().mean(dim=(1, 2, 3))).mean()

    return loss


def fit(
    name: str,
    modules: Iterable[torch.nn.Module],
    loss: Callable[[], Tensor],
    steps: int,
    learning_rate: float,
    ema: float = 0.999,
    horizon: float = 1.0,
) -> None:
    """AdamW with warm-up and a cosine decay that ends after `horizon` times the steps.

    Leaves the exponential moving average of the weights in the modules.
    """
    group = torch.nn.ModuleList(modules)
    parameters = [parameter for parameter in group.parameters() if parameter.requires_grad]
    averages = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.01, fused=True)
    warmup = min(200, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * np.cos(np.pi * step / (horizon * steps)) + 0.01)
    )
    group.train()
    smooth = None
    with tqdm(total=steps, desc=name, unit="step", mininterval=5) as bar:
        for step in range(steps):
            value = loss()
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            decay = min(ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - decay)
            smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{smooth:.4f}")
    with torch.no_grad():
        for parameter, average in zip(parameters, averages, strict=True):
            parameter.copy_(average)
    group.eval()


def _unrelated_pictures(count: int, seed: int) -> UInt8:
    """Noise at many scales, gradients and random polygons: what teaches the VAE pictures from outside the world."""
    rng = np.random.default_rng([seed, 7])
    size = PICTURE_SIZE
    out = np.empty((count, size, size, 3), dtype=np.uint8)
    for index in range(count):
        picture = np.zeros((size, size, 3), dtype=np.float32)
        for side in (2, 4, 8, 16, 32, 64):
            grain = rng.normal(0, rng.uniform(0, 70) * (side / 2) ** -0.45, (side, side, 1))
            tint = rng.normal(0, rng.uniform(0, 45) * (side / 2) ** -0.6, (side, side, 3))
            small = np.clip(grain + tint + 128, 0, 255).astype(np.uint8)
            picture += np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)) - 128.0
        base = np.clip(picture + rng.uniform(30, 225), 0, 255).astype(np.uint8)
        canvas = Image.fromarray(base)
        draw = ImageDraw.Draw(canvas)
        for _ in range(rng.integers(0, 7)):
            points = [tuple(point) for point in rng.uniform(-8, size + 8, size=(rng.integers(2, 6), 2))]
            fill = tuple(int(value) for value in rng.integers(0, 256, 3))
            if len(points) == 2:
                draw.line(points, fill=fill, width=int(rng.integers(1, 5)))
            else:
                draw.polygon(points, fill=fill)
        out[index] = np.asarray(canvas)
    return out


def save_half(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Writes the pipeline as a diffusers folder with fp16 safetensors; the pipeline itself stays fp32."""
    half = copy.copy(pipeline)
    for name in ("vae", "text_encoder", "unet"):
        setattr(half, name, copy.deepcopy(getattr(pipeline, name)).half())
    os.makedirs(folder, exist_ok=True)
    half.save_pretrained(folder, safe_serialization=True)
