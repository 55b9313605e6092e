"""Whether there is network to download weights."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

PROBE_SECONDS = 3.0


def hub_reachable() -> bool:
    """Whether the Hugging Face hub, or `HF_ENDPOINT`, answers within `PROBE_SECONDS`; False if `HF_HUB_OFFLINE` is
    set."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(endpoint, timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # an error status is an answer
    except (OSError, ValueError):
        return False
