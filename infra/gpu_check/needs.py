"""What the check needs beside torch, transformers, safetensors, numpy and what these bring along.

`pip download --no-deps -r <(python -m infra.gpu_check --needs)` fetches it: about 40 MiB of wheels, of which
matplotlib, fonttools, Pillow, tensorboard and diffusers are 30. torchvision is not among them: it must be built for the
very torch that is there, and only the pocket world's CLIP model wants it (open_clip imports it).
"""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement

LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"
NEEDS = (
    "accelerate",
    "annotated-types",
    "charset-normalizer",
    "contourpy",
    "cycler",
    "diffusers",
    "fonttools",
    "ftfy",
    "importlib-metadata",
    "kiwisolver",
    "lazy-importer",
    "matplotlib",
    "open-clip-torch",
    "peft",
    "pillow",
    "protobuf",
    "psutil",
    "pydantic",
    "pydantic-core",
    "pyparsing",
    "python-dateutil",
    "requests",
    "six",
    "tensorboard",
    "typing-inspection",
    "urllib3",
    "wcwidth",
    "zipp",
)


def lines() -> list[str]:
    """`name==version` of each, as requirements.lock pins it for the running Python."""
    pinned = pins()
    return [f"{name}=={pinned[name]}" for name in NEEDS]


def pins() -> dict[str, str]:
    """Name to version of all that requirements.lock installs here."""
    pinned = {}
    for line in re.findall(r"^([a-z0-9-]+==[^\\\n]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            (version,) = requirement.specifier
            pinned[requirement.name] = version.version
    return pinned
