"""The base model: a Stable Diffusion 1.x text-to-image model, plain or personalised, from a folder or a single file.

Weights are safetensors. A single file may also be a pickle of tensors, see `components.files.pickles`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import nn

from components.base.checks import check_folder, check_single_file
from components.base.hub import BASE_MODEL_HELP, LOADING_ERRORS, first_line, hub_snapshot, resolve
from components.base.textual_inversion import add_textual_inversion
from components.diffusion.noise import Prediction
from components.files.kinds import EXPLANATIONS, KINDS, OPTION_HINTS
from components.files.weights import Header, check_numbers, read_header
from components.lora.kohya import fuse_lora
from infra.artifacts import artifacts
from infra.artifacts.sealing import RECORD
from infra.config import Config
from infra.errors import UserError
from infra.hashing import sha256_json, sha256_path
from infra.quiet import quiet

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


HUB_REFERENCE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


class LoraFile(Config):
    """A LoRA of an image model, fused into the base model's weights."""

    path: Path
    """A kohya-format .safetensors file (what Civitai offers as "LoRA")."""
    scale: float = 1.0
    """Factor on the LoRA's effect; 0 is off, 1 is as trained."""


class EmbeddingFile(Config):
    """A textual-inversion embedding: a word for prompts."""

    path: Path
    """A .safetensors or .pt file in A1111's or diffusers' format."""
    token: str | None = None
    """The word for it in prompts; none is the name of the file."""


class BaseModel(Config):
    """A base or personalised text-to-image model."""

    path: Path
    """A diffusers folder, a single .safetensors file in the original SD 1.x layout, or a hub id `org/name`."""
    reference: Path | None = None
    """A diffusers folder whose configs and tokenizer are used for a single file; none means SD 1.5's."""
    loras: tuple[LoraFile, ...] = ()
    """LoRAs fused into the weights, in this order."""
    embeddings: tuple[EmbeddingFile, ...] = ()
    """Textual-inversion embeddings for use in prompts."""


def load_base(model: BaseModel, device: str | torch.device = "cpu") -> StableDiffusionPipeline:
    """The pipeline in fp32 and eval mode, frozen, with its LoRAs fused and without safety checker.

    Raises:
        UserError: not a base model (the message says what it is), files that cannot be read, a LoRA or embedding that
            does not fit, or a hub id without network.
    """
    path = resolve(model.path)
    pipeline = _from_folder(path) if path.is_dir() else _from_file(path, model.reference)
    for part in ("unet", "vae", "text_encoder"):
        check_numbers(path, {f"{part}.{name}": tensor for name, tensor in getattr(pipeline, part).state_dict().items()})
    for lora in model.loras:
        fuse_lora(pipeline.unet, pipeline.text_encoder, lora.path, lora.scale)
    for embedding in model.embeddings:
        add_textual_inversion(pipeline, embedding.path, embedding.token)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def fingerprint_of(model: BaseModel) -> artifacts.Input:
    """The base model as an artifact's input: SHA256 over its files, LoRAs, scales, embeddings and their words."""
    path = resolve(model.path)
    hashes: list[Any] = [sha256_path(path)]
    if path.is_file():
        _checkpoint_header(path)
        hashes.append(_configs_sha256(_reference_folder(model.reference)))
    for lora in model.loras:
        read_header(lora.path)
        hashes.append([sha256_path(lora.path), lora.scale])
    for embedding in model.embeddings:
        read_header(embedding.path)
        hashes.append([sha256_path(embedding.path), embedding.token or embedding.path.stem])
    return artifacts.Input("base-model", path.resolve().name, hashes[0] if len(hashes) == 1 else sha256_json(hashes))


def prediction_type_of(pipeline: StableDiffusionPipeline) -> Prediction:
    """What the UNet predicts: noise (epsilon) or velocity (v_prediction)."""
    prediction_type: Prediction = pipeline.scheduler.config.get("prediction_type", "epsilon")
    return prediction_type


def vae_sha256(vae: nn.Module) -> str:
    """SHA256 over names and fp16 values, so that fp16 weights have the same hash before and after loading in fp32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _from_folder(folder: Path) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline

    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{folder} is not a model folder: it has no model_index.json.", BASE_MODEL_HELP, _suggestion(folder)
        )
    try:
        model_index = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{index} is not valid JSON.", BASE_MODEL_HELP, "Download the model again.") from None
    pipeline_class = model_index.get("_class_name", "no pipeline")
    if pipeline_class not in {"StableDiffusionPipeline", "AnimateDiffPipeline"}:
        raise UserError(
            f"{folder} is a model for {pipeline_class}.", BASE_MODEL_HELP, "Pass a Stable Diffusion 1.x model."
        )
    _check_is_sd1(folder)
    check_folder(folder)
    names = [file.name for file in (folder / "unet").glob("*.safetensors")]
    variant = "fp16" if names and all(".fp16" in name for name in names) else None
    try:
        with quiet():
            return StableDiffusionPipeline.from_pretrained(
                folder, dtype=torch.float32, safety_checker=None, feature_extractor=None, image_encoder=None,
                requires_safety_checker=False, local_files_only=True, use_safetensors=True, variant=variant,
            )  # fmt: skip
    except LOADING_ERRORS as error:
        raise UserError(
            f"{folder} could not be loaded as a base model: {first_line(error)}",
            "A part is missing or damaged, or its weights are pickles (.bin), which are not loaded.",
            "Download the safetensors version.",
        ) from None


def _suggestion(folder: Path) -> str:
    """What to pass instead of this folder."""
    if (folder / RECORD).is_file():
        return f"{folder} is a {artifacts.load(folder).kind}. Pass the base model that it was made with."
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    return f"Pass the file itself: {folder / files[0]}." if files else "Check the path."


def _from_file(path: Path, reference: Path | None) -> StableDiffusionPipeline:
    from diffusers import StableDiffusionPipeline
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    header = _checkpoint_header(path)
    folder = _reference_folder(reference)
    check_single_file(header, folder)
    try:
        with quiet():
            return StableDiffusionPipeline.from_single_file(
                str(path), config=str(folder), local_files_only=True, dtype=torch.float32,
                safety_checker=None, feature_extractor=None, image_encoder=None,
            )  # fmt: skip
    except (SingleFileComponentError, *LOADING_ERRORS) as error:
        raise UserError(
            f"{path} could not be loaded with the configs of {folder}: {first_line(error)}",
            "Its sizes or keys differ from those of the reference model, or it has no VAE or text encoder.",
            "Pass the diffusers folder of the model that it was fine-tuned from as its reference.",
        ) from None


def _checkpoint_header(path: Path) -> Header:
    """
    Raises:
        UserError: the file is not a Stable Diffusion 1.x checkpoint.
    """
    header = read_header(path)
    if header.kind != "checkpoint":
        raise UserError(
            f"{path} is {KINDS[header.kind]}.",
            EXPLANATIONS.get(header.kind) or BASE_MODEL_HELP,
            OPTION_HINTS.get(header.kind, "Pass a text-to-image model of Stable Diffusion 1.x as the base model."),
        )
    return header


def _reference_folder(reference: Path | None) -> Path:
    """The folder with the configs and tokenizer for a single file: `reference`, or SD 1.5's from the hub."""
    if reference is None:
        return hub_snapshot(HUB_REFERENCE, configs_only=True)
    if not (reference / "model_index.json").is_file():
        raise UserError(
            f"The reference {reference} is not a diffusers folder.",
            "Its configs and tokenizer are used for a single file.",
            "Pass the diffusers folder of the model that the file was fine-tuned from.",
        )
    return reference


def _configs_sha256(folder: Path) -> str:
    """SHA256 over the configs and tokenizer of a reference folder. Its weights are not used for a single file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in {".json", ".txt"})
    return sha256_json([[path.relative_to(folder).as_posix(), sha256_path(path)] for path in files])


def _check_is_sd1(folder: Path) -> None:
    """Checks the configs of a diffusers folder, before its weights are read.

    Raises:
        UserError: an inpainting or image-conditioned model, Stable Diffusion 2, or a model that predicts the image.
    """
    unet = _read_json(folder / "unet" / "config.json")
    scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
    channels, text_width = unet.get("in_channels", 4), unet.get("cross_attention_dim", 768)
    prediction_type = scheduler.get("prediction_type", "epsilon")
    if channels != 4:
        raise UserError(
            f"{folder} has a UNet with {channels} input channels.",
            f"That is an inpainting or image-conditioned model. {EXPLANATIONS['inpainting-checkpoint']}",
            "Pass the text-to-image model that it was made from.",
        )
    if text_width == 1024:
        raise UserError(
            f"{folder} is {KINDS['sd2-checkpoint']} (text width 1024"
            + (f", predicts {prediction_type})." if prediction_type != "epsilon" else ")."),
            EXPLANATIONS["sd2-checkpoint"],
            "Pass Stable Diffusion 1.5, or a model fine-tuned from it.",
        )
    if prediction_type not in get_args(Prediction):
        raise UserError(
            f"{folder} predicts {prediction_type}.",
            "Only models that predict noise (epsilon) or velocity (v_prediction) are supported.",
            "Pass one of these.",
        )


def _read_json(file: Path) -> dict[str, Any]:
    """Empty where it cannot be read; the error then comes from the loader."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
