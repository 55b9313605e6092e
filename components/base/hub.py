"""Where the files of a base model are: at a local path, in the Hugging Face cache, or on the hub.

The network is used only for a hub id that is not in the cache, and only after a short probe, so that a machine without
network gets its error within seconds.
"""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError

from components.files.network import hub_reachable
from components.files.pickles import SUFFIXES as PICKLE_SUFFIXES
from infra.errors import UserError
from infra.logs import get_logger
from infra.quiet import quiet

LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)
"""What diffusers and transformers raise for a folder or file that they cannot load."""
BASE_MODEL_HELP = (
    "A base model is a Stable Diffusion 1.x model: a diffusers folder (with model_index.json, unet/, vae/, "
    "text_encoder/, tokenizer/, scheduler/) or one .safetensors file."
)

log = get_logger("components")


def resolve(path: Path) -> Path:
    """The local file or folder of a base model, from its path or hub id.

    Raises:
        UserError: no such path, or a hub id and the hub cannot be reached.
    """
    if path.exists():
        return path
    name = path.as_posix()
    names_a_file = path.suffix.lower() in (".safetensors", *PICKLE_SUFFIXES)  # `org/model-v1.5` does not
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and not path.parent.exists() and not names_a_file:
        return hub_snapshot(name, configs_only=False)
    raise UserError(f"{path} does not exist.", BASE_MODEL_HELP, "Check the path given as base model.")


def hub_snapshot(name: str, configs_only: bool) -> Path:
    """The local folder of a hub model: from the cache, else downloaded (safetensors and configs only).

    Raises:
        UserError: it is not in the cache, and there is no network or the download fails.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    with quiet():
        try:
            folder = _download(name, configs_only, local_files_only=True)
            if (folder / "model_index.json").is_file():
                return folder
        except (OSError, ValueError, LocalEntryNotFoundError):
            pass  # not in the cache
    if not hub_reachable():
        what = f"The configs of {name}" if configs_only else f"{name}"
        raise UserError(
            f"{what} cannot be loaded: it is not on this machine, and there is no network for a hub model.",
            "A name like `org/name` is a model on huggingface.co.",
            f"Where there is network, run `hf download {name} --local-dir FOLDER`, and pass FOLDER"
            + (" as the base model's reference." if configs_only else "."),
        )
    try:
        log.info("Downloading %s from the hub.", name)
        return _download(name, configs_only, local_files_only=False)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"{name} could not be downloaded: {first_line(error)}.", BASE_MODEL_HELP, "Check the name and your access."
        ) from None


def first_line(error: BaseException) -> str:
    """The first line of the error's text, at most 300 characters; the type's name where there is no text."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _download(name: str, configs_only: bool, local_files_only: bool) -> Path:
    from diffusers import StableDiffusionPipeline
    from huggingface_hub import snapshot_download

    if configs_only:
        patterns = ["model_index.json", "*/*.json", "*/*.txt"]
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_files_only))
    return Path(StableDiffusionPipeline.download(name, local_files_only=local_files_only, use_safetensors=True))
