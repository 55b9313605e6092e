"""Builds the pocket models from nothing, and knows where the ones that ship with the project are."""

from __future__ import annotations

import copy
from pathlib import Path

from infra.artifacts import artifacts
from infra.artifacts.artifacts import Artifact
from infra.config import Config
from infra.errors import UserError
from infra.hashing import sha256_file
from infra.logs import get_logger

log = get_logger("pocket")

WEIGHTS = Path(__file__).parent / "weights"
CHECKSUMS = "SHA256SUMS"
KIND = "pocket-models"


class PocketModels(Config):
    """Lengths of the five trainings; the defaults made the weights that ship."""

    seed: int = 0
    """Seed of pictures, initial weights and batches."""
    vae_steps: int = 4000
    """Steps of 16 pictures."""
    base_steps: int = 5000
    """Steps of 32 latents."""
    clip_steps: int = 1600
    """Steps of 96 pictures and captions."""
    ink_steps: int = 500
    """Fine-tuning steps of 32 latents."""
    neon_steps: int = 600
    """LoRA steps of 32 latents."""


def build_models(config: PocketModels, out: Path) -> Artifact:
    """Trains VAE, base model, CLIP and the two personalised variants; about an hour and a half on two cores.

    Returns an artifact with `base/` (diffusers folder), `clip/` (open_clip folder), `ink.safetensors` (full checkpoint,
    original key layout) and `neon.safetensors` (kohya LoRA), all fp16. Its metrics are the judge's: the share of
    generated stills whose shape, colour and background the CLIP model reads as prompted.
    """
    if done := artifacts.find(out, KIND, config, {}):
        return done

    from safetensors.torch import save_file

    from infra.pocket.clip_model import save_clip, train_clip
    from infra.pocket.image_model import build_tokenizer, save_half, train_base, train_vae
    from infra.pocket.judge import judge_stills
    from infra.pocket.personalised import save_single_file, train_ink, train_neon

    with artifacts.draft(out, KIND, config, {}) as draft:
        tokenizer = build_tokenizer()
        vae = train_vae(config.vae_steps, config.seed)
        base = train_base(vae, tokenizer, config.base_steps, config.seed)
        save_half(base, draft.folder / "base")
        clip = train_clip(tokenizer, config.clip_steps, config.seed)
        save_clip(clip, tokenizer, draft.folder / "clip")
        save_single_file(train_ink(base, config.ink_steps, config.seed), draft.folder / "ink.safetensors")
        neon = train_neon(copy.copy(base), config.neon_steps, config.seed)
        save_file(neon, draft.folder / "neon.safetensors", metadata={"ss_base_model_version": "pocket"})
        draft.metrics.update(judge_stills(base, clip))
    return artifacts.load(out, KIND)


def write_checksums(folder: Path = WEIGHTS) -> None:
    """Writes `SHA256SUMS` over every file below the folder, in the form that `sha256sum -c` reads."""
    lines = [f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}" for path in _weight_files(folder)]
    (folder / CHECKSUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_weights(folder: Path = WEIGHTS) -> None:
    """Compares the shipped weights with their checksums.

    Raises:
        UserError: a file is missing or was changed.
    """
    table = folder / CHECKSUMS
    lines = table.read_text().splitlines() if table.is_file() else []
    stated = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    wrong = [name for name, digest in stated.items() if not _same(folder / name, digest)]
    if not stated or wrong:
        raise UserError(
            f"The pocket weights are incomplete: {', '.join(wrong[:3]) or CHECKSUMS} in {folder}.",
            "A file is missing or differs from its checksum.",
            "Run `git checkout infra/pocket/weights`, or rebuild them with `animateflow pocket build`.",
        )


def _same(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (CHECKSUMS, "README.md"))
