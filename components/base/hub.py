"""Where a base model's files are: on this machine, else on the hub.

Everything is resolved to local files first; the network is asked only for a hub id that is not in the cache, and only
after a short probe, so that a machine without network answers in seconds.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from safetensors import SafetensorError

from infra.errors import UserError
from infra.logs import get_logger
from infra.quiet import quiet

PROBE_SECONDS = 3.0
LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)
"""What diffusers and transformers raise of a folder or file that they cannot load."""
WHAT_IS_A_BASE = (
    "A base model is a Stable Diffusion 1.x model: a diffusers folder (with model_index.json, unet/, vae/, "
    "text_encoder/, tokenizer/, scheduler/) or one .safetensors file."
)

log = get_logger("components")


def resolve(path: Path) -> Path:
    """The local file or folder that a path or a hub id stands for.

    Raises:
        UserError: there is nothing there, or it is a hub id and the hub cannot be reached.
    """
    if path.exists():
        return path
    name = path.as_posix()
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and not path.parent.exists() and not path.suffix:
        return from_hub(name, configs_only=False)
    raise UserError(f"{path} does not exist.", WHAT_IS_A_BASE, "Check the path given as base model.")


def from_hub(name: str, configs_only: bool) -> Path:
    """The snapshot folder of a hub model: from the cache, else downloaded (safetensors and configs only)."""
    from diffusers import StableDiffusionPipeline
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def get(local: bool) -> Path:
        if configs_only:
            patterns = ["model_index.json", "*/*.json", "*/*.txt"]
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local))
        return Path(StableDiffusionPipeline.download(name, local_files_only=local, use_safetensors=True))

    with quiet():
        try:
            folder = get(local=True)
            if (folder / "model_index.json").is_file():
                return folder
        except (OSError, ValueError, LocalEntryNotFoundError):
            pass  # not in the cache
    if not _hub_answers():
        what = f"The configs of {name}" if configs_only else f"{name}"
        raise UserError(
            f"{what} cannot be loaded: it is not on this machine, and there is no network for a hub model.",
            "A name like `org/name` stands for a model on huggingface.co.",
            f"Where there is network, run `hf download {name} --local-dir FOLDER`, and pass FOLDER"
            + (" as the base model's reference." if configs_only else "."),
        )
    try:
        log.info("Downloading %s from the hub.", name)
        return get(local=False)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"{name} could not be downloaded: {first_line(error)}.", WHAT_IS_A_BASE, "Check the name and your access."
        ) from None


def _hub_answers() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(endpoint, timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
